"""`came-status`: where runs are, at a glance, also while they go on.

    came-status                    all runs below runs/
    came-status runs/a /data/b     of these folders, and of the folders below them
    came-status --json runs/       for a machine: seconds, steps, tokens per second

state is running, stopped, finished, failed or never started. tokens/s is of the last logged step,
"to go" by the last ten, without evaluations and saves; a checkpoint is told with its age; the last
error is the one that ended the run, whatever started it. Runs of other machines are told by their
files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from trainers.failures import ends_with_reader, report
from trainers.flags import Parser
from trainers.redact import redact_text
from trainers.reports.runs import find_runs, names_of
from trainers.run.console import table_console
from trainers.run_state import RunState, is_run, read_state
from trainers.status_table import plain, show


@ends_with_reader
def main(arguments: Sequence[str] | None = None) -> int:
    """The command `came-status`; 0 whatever the runs did, 3 for a path that does not exist."""
    parser = Parser("came-status", description=__doc__)
    parser.add_argument("runs", nargs="*", default=["runs"], metavar="RUN", help="runs/ if none")
    parser.add_argument("--json", action="store_true", help="the answer as JSON")
    unread: list[str] = []
    try:
        given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
        folders, _ = find_runs(given.runs, is_run, lambda error: _note(error, unread))
        states = [read_state(folder) for folder in folders]
    except Exception as error:
        return report(error, None, verbose=False)
    _print(given, names_of(folders), states, unread)
    return 0


def _note(error: OSError, unread: list[str]) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):  # gone since; a file
        unread.append(redact_text(f"{error.filename} cannot be searched: {error.strerror}"))


def _print(
    given: argparse.Namespace, names: list[str], states: list[RunState], unread: list[str]
) -> None:
    console = table_console()
    if given.json:
        rows = [{"run": name, **s.as_dict()} for name, s in zip(names, states, strict=True)]
        print(json.dumps({"runs": rows, "unread": unread}, indent=1))
        return
    if not states:
        print(f"no run in {', '.join(given.runs)}")
    elif sys.stdout.isatty():
        show(names, states, console)
    else:
        print(plain(names, states))
    for line in unread:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
