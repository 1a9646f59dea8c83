"""Step folders by their names: which commits a run has, told without torch."""

import re
from pathlib import Path

MANIFEST_FILE = "manifest.json"
_STEP_FOLDER = re.compile(r"step-([0-9]{8,})")


def folder_name(step: int) -> str:
    """`step-00000100`: of eight digits, so that a listing is in order up to 10^8 steps."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step of a committed folder; None for anything else, such as a partial one."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    if not match or folder.name != folder_name(int(match[1])):
        return None
    return int(match[1])


def committed(checkpoints: Path) -> list[Path]:
    """The committed step folders, newest first: by the number in the name, clocks do not count."""
    if not checkpoints.is_dir():
        return []
    steps = [(step_of(path), path) for path in checkpoints.iterdir()]
    found = [(step, path) for step, path in steps if step is not None]
    return [path for _, path in sorted(found, reverse=True)]
