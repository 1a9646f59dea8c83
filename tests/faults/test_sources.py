"""What no fault can reach because it is not there, read from the sources."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = [
    file
    for package in ("came", "launch", "trainers")
    for file in REPOSITORY.glob(f"{package}/**/*.py")
]
TEXT = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
TABLE = [  # number, fault, outcome, test, measured
    cells
    for line in TEXT.partition("\n## The list\n")[2].splitlines()
    if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0][:1].isdigit()
]
TREES = {file: ast.parse(file.read_text()) for file in FILES}


def calls(name: str) -> list[str]:
    """Where a function of that dotted name is called."""
    return [
        f"{file.relative_to(REPOSITORY)}:{node.lineno}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]


def test_calls_are_found() -> None:
    assert calls("time.monotonic") and calls("os.kill")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("43 clock: durations are monotonic, steps have numbers", "time.time"),
        ("43", "datetime.now().timestamp"),
        ("46 pickle: tensors are safetensors, the rest is JSON", "torch.load"),
        ("46", "pickle.load"),
        ("46", "pickle.loads"),
        ("46 they unpickle", "dist.all_gather_object"),
        ("46", "dist.broadcast_object_list"),
        ("50 code in settings", "eval"),
        ("50", "exec"),
        ("50", "os.system"),
        ("50", "hydra.utils.instantiate"),
        ("50", "instantiate"),
    ],
)
def test_nothing_calls_it(row: str, name: str) -> None:
    # How old files are is told by the clock that has dated them, and decides nothing.
    shown = "trainers/run_state.py:" if name == "time.time" else "nobody"
    assert [place for place in calls(name) if not place.startswith(shown)] == [], row


def test_no_argument_trusts_code_or_shells() -> None:
    """Rows 48 and 50."""
    keywords = {
        (keyword.arg, str(file.relative_to(REPOSITORY)))
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
    }
    assert [
        place for place in keywords if place[0] in ("trust_remote_code", "shell", "allow_pickle")
    ] == []


def test_models_and_tokenizers_are_read_from_the_disk_alone() -> None:
    """Row 38: without the network nothing is waited for."""
    found = [
        (str(file.relative_to(REPOSITORY)), {keyword.arg for keyword in node.keywords})
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "from_pretrained"
    ]
    assert found
    assert [file for file, keywords in found if "local_files_only" not in keywords] == []


def test_the_table_has_every_row_and_tests_that_exist() -> None:
    rows: list[int] = []
    for cells in TABLE:
        for part in cells[0].split(","):
            first, _, last = part.partition("-")
            rows += range(int(first), int(last or first) + 1)
    assert rows == list(range(1, 55)), "each once, in order"
    short = set(re.findall(r"\*(\w+)\* =\s+`", TEXT))
    assert short >= {"all", "run", "shims", "storage", "refused"}
    for number, _, outcome, tests, _ in TABLE:
        named = set(re.findall(r"\*(\w+)\*", tests))
        assert outcome and named <= short and (named or "`" in tests), number
    names = set(re.findall(r"`([\w/]*test_\w+\.py)`", TEXT))
    places = (REPOSITORY, REPOSITORY / "tests", REPOSITORY / "tests" / "trainers")
    assert names and [n for n in sorted(names) if not any((p / n).exists() for p in places)] == []


def test_every_file_of_faulty_runs_is_named_by_the_table() -> None:
    """And of them all that start a run hold it to everything by `must`."""
    for file in sorted((REPOSITORY / "tests" / "faults").glob("test_*.py")):
        assert f"`tests/faults/{file.name}`" in TEXT
        tree = ast.parse(file.read_text())
        for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            source = ast.unparse(function)
            if function.name.startswith("test_") and "Started(" in source:
                held = (".must(", "saves_and_leaves(", "refused(")
                assert any(call in source for call in held), function.name
