"""`came-report`: what runs have measured, in pictures and tables.

    came-report runs/quickstart                        the picture and page of one run, inside it
    came-report runs/ --out comparison/                all runs below a folder, seeds together
    came-report runs/* --paper bert_large_32k          the paper's digitised curves beside them

Several runs, or one with --out or --paper, are one HTML file that needs nothing beside it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainers.errors import DataError, RunError
from trainers.failures import ends_with_reader
from trainers.flags import Parser
from trainers.reports.page import write_page
from trainers.reports.paper import paper_figure
from trainers.reports.runs import find_runs, read_runs
from trainers.reports.single import write_report


def write(
    paths: Sequence[str | Path], *, paper: str | None = None, out: str | Path | None = None
) -> Path:
    """Write the report of the runs at and below `paths`; returns the file to open.

    Raises ConfigError for an unknown paper, DataError for runs that cannot be read, StorageError.
    """
    figure = paper_figure(paper) if paper is not None else None
    one = Path(paths[0]).resolve() if len(paths) == 1 and figure is None and out is None else None
    target = Path(out or "report").resolve()
    folders, empty = find_runs([path for path in paths if Path(path).resolve() != target])
    if one is not None and one.is_dir() and folders in ([], [one]):
        return write_report(one)
    if not folders:
        given = ", ".join(map(str, paths))
        raise DataError(f"there is no run in {given}: name run folders, or folders of them")
    return write_page(read_runs(folders), target, paper=figure, empty=empty)


@ends_with_reader
def main(arguments: Sequence[str] | None = None) -> int:
    """The command `came-report`."""
    parser = Parser("came-report", description=__doc__)
    parser.add_argument(
        *("runs",), nargs="+", metavar="RUN", help="a run folder, or a folder of run folders"
    )
    parser.add_argument("--paper", metavar="NAME", help="draw the paper's curves beside the runs")
    parser.add_argument("--out", metavar="DIR", help="folder of the page of several runs: report/")
    try:
        given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
        print(write(given.runs, paper=given.paper, out=given.out))
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
