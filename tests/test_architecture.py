"""Imports point one way, read from the sources: a lower floor never names a higher one."""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = {"came": {"came"}, "launch": {"launch"}, "trainers": {"came", "launch", "trainers"}}
MAX_LINES = 300

# From the ground up; the longest name that fits a module is its place. On one floor modules may
# import each other as long as there is no circle.
FLOORS = [
    ["came.layout", "came.reduce", "came.reference"],
    ["came.momentum"],
    ["came.fields", "came.tasks"],
    ["came.kernels"],
    ["came.rules"],
    ["came.sharding", "came.ledger"],
    ["came.sharded_optimizer"],
    ["came"],
    ["launch", "trainers.errors", "trainers.faults"],
    [
        *("trainers.durable", "trainers.markdown", "trainers.redact", "trainers.regular"),
        *("trainers.signals", "trainers.typed"),
    ],
    [
        *("trainers.config", "trainers.deepspeed_keys", "trainers.schedules", "trainers.phases"),
        "trainers.limits",
    ],
    ["trainers.flops", "trainers.span_lengths"],
    ["trainers.objective_keys", "trainers.folder_shape", "trainers.failures", "trainers.flags"],
    ["trainers.validate", "trainers.words"],
    ["trainers.compose", "trainers.fidelity"],
    [
        "trainers.models",
        "trainers.pretrained",
        "trainers.objectives",
        "trainers.data",
    ],
    ["trainers.run"],
    ["trainers.reports", "trainers.build", "trainers.model_card"],
    ["trainers.planner"],
    ["trainers.run_state"],
    ["trainers.status_table"],
    ["trainers.run.loop", "trainers.run.fit", "trainers.finished"],
    ["trainers.checks"],
    ["trainers.plan", "trainers.sweep"],
    ["trainers.export", "trainers.judge", "trainers.checkpoint_command"],
    ["trainers.report", "trainers.check", "trainers.finetuning"],
    ["trainers.finetune", "trainers.completion"],
    ["trainers.pretrain"],
    ["trainers.prepare"],
    ["trainers.status"],
]


def name_of(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(file): file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")
}


def imports(node: ast.AST, inside_function: bool = False) -> Iterator[tuple[str, bool]]:
    """(dotted name, is it imported only when a function is called) for every import below."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside_function) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute here: they say where a thing comes from"
            names = [f"{child.module}.{alias.name}" for alias in child.names]
            modules = {name if name in MODULES else str(child.module) for name in names}
            yield from ((name, inside_function) for name in sorted(modules))
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(child, inside_function or function)


IMPORTS = {
    name: sorted(set(imports(ast.parse(file.read_text())))) for name, file in MODULES.items()
}


def floor(module: str) -> int:
    places = {name: level for level, names in enumerate(FLOORS) for name in names}
    while module not in places:
        assert "." in module, f"{module} has no floor: give it one in FLOORS"
        module = module.rpartition(".")[0]
    return places[module]


def root(name: str) -> str:
    return name.partition(".")[0]


def test_there_is_something_to_look_at():
    assert {"came.layout", "launch.local", "trainers.pretrain"} <= MODULES.keys()
    assert ("trainers.config", False) in IMPORTS["trainers.validate"]
    assert ("trainers.run.loop", True) in IMPORTS["trainers.pretrain"]


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down(module):
    own = [name for name, _ in IMPORTS[module] if root(name) in PACKAGES]
    assert {root(name) for name in own} <= PACKAGES[root(module)]
    assert [name for name in own if floor(name) > floor(module)] == []


def test_the_design_has_every_floor_in_its_place():
    page = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8")
    picture = page.split("## Which way imports run")[1]
    for package in ("came", "trainers"):
        drawn = picture.split(f"    {package}:")[1].split(":")[0]
        places = {
            name: level
            for level, names in enumerate(reversed(drawn.split("|")))
            for name in re.findall(r"\w+", names)
        }
        own = [[n for n in names if root(n) == package and n != package] for names in FLOORS]
        drawn_floors = [{places[n.rpartition(".")[2]] for n in names} for names in own if names]
        assert all(len(levels) == 1 for levels in drawn_floors), drawn_floors
        assert drawn_floors == sorted(drawn_floors, key=min), drawn_floors


def test_there_are_no_circles():
    graph = {m: [n for n, _ in names if n in MODULES and n != m] for m, names in IMPORTS.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError and names the circle


@pytest.mark.parametrize("module", [name for name in MODULES if root(name) == "came"])
def test_came_needs_torch_alone(module):
    allowed = {*sys.stdlib_module_names, "came", "torch"}
    if module.startswith("came.kernels.triton_"):
        allowed.add("triton")
    assert {root(name) for name, _ in IMPORTS[module]} <= allowed
    # `gpu` imports these when it is chosen, and nobody else does.
    assert not [name for name, _ in IMPORTS[module] if "triton_" in name] or "triton" in allowed


@pytest.mark.parametrize("module", [name for name in MODULES if root(name) == "launch"])
def test_the_launcher_needs_python_and_yaml_alone(module):
    known = {*sys.stdlib_module_names, "launch", "yaml"}
    assert {root(name) for name, _ in IMPORTS[module]} <= known


def test_a_file_can_be_read_in_five_minutes():
    lengths = {name: file.read_text().count("\n") for name, file in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}
