"""`came-check`: what a run would be, and whether it can be one, before it costs anything.

    came-check experiment=bert_large_32k          the words of came-train
    came-check experiment=bert_large_32k --json   for a machine
    came-check experiment=quickstart --no-parity  without training: seconds
    came-check --environment                      the machine alone: for a cluster's job script

One page, in order: environment, configuration, data, disk space, memory, each OK or REFUSED with
what to do; then
Fidelity: each setting beside what the paper publishes. It stops nobody: a deviation is no mistake.
Parity: five steps of the same configuration, made small, on two processes and on one; where they
differ by more than rounding, the first tensor that differs is named.

Exit codes: 0 all OK, or that of the first that is refused: 2 versions or configuration, 3 data,
6 disk space, 7 processes that cannot talk to each other, 8 memory, 10 parity.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from trainers.checks.page import Check, show, verdict
from trainers.compose import compose
from trainers.config import Config
from trainers.errors import ConfigError
from trainers.failures import ends_with_reader, report
from trainers.flags import FLAGS, unknown_flag
from trainers.typed import message

_OPTIONS = FLAGS["came-check"]


@ends_with_reader
def main(arguments: Sequence[str] | None = None) -> int:
    """The command `came-check`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    try:
        found = []
        for check in checks_of(words):
            found.append(check)
            if "--json" not in words:
                show(check)
                sys.stdout.flush()
    except Exception as error:
        return report(error, None, verbose=os.environ.get("CAME_TRACEBACK") == "1")
    if "--json" in words:
        print(json.dumps({"checks": [asdict(check) for check in found]}))
    else:
        print(verdict(found))
    return next((check.exit_code for check in found if not check.is_green), 0)


def checks_of(words: Sequence[str]) -> Iterator[Check]:
    """Looks at one thing after the other. Raises ConfigError before the first."""
    settings = [word for word in words if word not in _OPTIONS]
    if "--environment" in words:
        if settings:
            problems = [unknown_flag(word, _OPTIONS) for word in settings if word.startswith("-")]
            alone = f"--environment looks at the machine alone: leave out {' '.join(settings)}"
            raise ConfigError(message(problems or [alone]))
        from trainers.checks.environment import check_environment

        yield check_environment()
        return
    config = compose(settings, needs_text=False, flags=_OPTIONS)
    from trainers.checks.environment import check_environment

    yield (environment := check_environment())
    if environment.exit_code != ConfigError.exit_code:  # else what is below cannot be imported
        yield from _of_run(config, settings, parity="--no-parity" not in words)


def _of_run(config: Config, settings: Sequence[str], *, parity: bool) -> Iterator[Check]:
    from trainers.checks import configuration, disk, fidelity, memory, text
    from trainers.checks.machine import this_machine
    from trainers.planner.plan import plan_run

    machine = this_machine()
    device = machine.gpus[0].name if machine.gpus else "CPU"
    plan = plan_run(config, device, mfu=1.0)
    yield configuration.check_configuration(config, plan)
    yield (data := text.check_text(config, settings))
    yield disk.check_disk(config, plan, data.details.get("text_bytes", 0))
    yield memory.check_memory(config, plan, machine)
    yield fidelity.check_fidelity(config)
    if parity:
        from trainers.checks.sharded import check_sharded

        yield check_sharded(config)


if __name__ == "__main__":
    sys.exit(main())
