"""Every came-train of docs/launch.md is one that came-train takes."""

import re
import shlex
from pathlib import Path

import pytest

from trainers.compose import compose
from trainers.sweep import read_sweep

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "launch.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE.replace("\\\n", " "), re.M | re.S)
COMMANDS = [shlex.split(line) for block in BLOCKS for line in block.splitlines()]
TRAIN = [words[words.index("came-train") + 1 :] for words in COMMANDS if "came-train" in words]


def test_there_are_some() -> None:
    assert len(TRAIN) >= 4


@pytest.mark.parametrize("words", TRAIN, ids=" ".join)
def test_it_is_taken(words: list[str]) -> None:
    if "--multirun" in words:
        assert len(read_sweep([word for word in words if word != "--multirun"]).jobs) > 1
    else:
        compose(words)
