"""`came-plan`: memory, communication and time of a run before it, for all optimizers side by side.

    came-plan experiment=bert_large_32k zero.stage=2 launch.nodes=4
    came-plan experiment=bert_large_32k optimizer=adamw launch.gpus_per_node=4 --device A100
    came-plan model=bert_4b runtime.dtype=bfloat16 zero.stage=3 --json

The words are those of came-train; no data, GPU or memory is needed.  launch.nodes machines of
launch.gpus_per_node GPUs (8 if not given).  State is exact, activations and DeepSpeed's buffers are
estimated (docs/planner.md), time is arithmetic.

    --mfu 0.4       share of the device's peak that is used: an assumption
    --device H100   whose peak (in bfloat16; runtime.peak_tflops=... for others)
    --json          bytes, FLOPs and hours for a machine
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from trainers.compose import compose
from trainers.errors import ConfigError
from trainers.failures import ends_with_reader, report
from trainers.flags import FLAGS, Parser


@ends_with_reader
def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the plan that the words ask for; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or set(words) & {"-h", "--help"}:
        print(__doc__)
        return 0
    try:
        _plan(words)
    except Exception as error:
        return report(error, None, verbose=False, words=True)
    return 0


def _plan(words: Sequence[str]) -> None:
    options, overrides = _parser().parse_known_args(words)
    if not 0 < options.mfu <= 1:
        raise ConfigError(f"--mfu {options.mfu}: it is a share of the peak, above 0 and up to 1")
    config = compose(overrides, planned=True, flags=FLAGS["came-plan"])
    from trainers.planner.plan import plan_run  # torch and transformers, after the words are right
    from trainers.planner.table import show
    from trainers.run.console import table_console

    plan = plan_run(config, options.device, options.mfu)
    if options.json:
        print(json.dumps(plan.as_dict(), indent=1))
    else:
        show(plan, table_console())


def _parser() -> Parser:
    parser = Parser(prog="came-plan", add_help=False)
    parser.add_argument("--mfu", type=float, default=0.4)
    parser.add_argument("--device", default="H100")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
