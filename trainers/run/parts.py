"""What the ranks tell each other while a checkpoint is written: small files in its folder."""

import json
import logging
from pathlib import Path
from typing import Any

from trainers import durable

logger = logging.getLogger(__name__)


def file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def leave_part(staging: Path, rank: int, part: dict[str, Any]) -> None:
    """Tell rank 0 what this rank has written, or why it could not."""
    try:
        staging.mkdir(parents=True, exist_ok=True)  # where the copy failed nothing is there yet
        # Rank 0 may take it, and rename the folder, at once: nothing may be done there after.
        durable.replace(staging / f"rank-{rank:05d}.part", json.dumps(part).encode())
    except OSError:
        # A disk that is full for bytes may still take a name.
        try:
            (staging / f"rank-{rank:05d}.failed").touch()
        except OSError as error:
            logger.warning("rank %d cannot tell that it failed to save: %s", rank, error)


def take_part(staging: Path, rank: int) -> dict[str, Any] | None:
    """What a rank has left, None if there is nothing yet; removed, it is no part of a commit."""
    if (staging / f"rank-{rank:05d}.failed").exists():
        return {"error": "it could not write"}
    path = staging / f"rank-{rank:05d}.part"
    try:
        part: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    path.unlink()
    return part
