"""What the faulty runs share: a text, and the run that nothing happened to."""

from pathlib import Path

import pytest

from tests.faults.runs import STARTING, Started, nobody_is_left
from tests.trainers.data.corpus import write_text

__all__ = ["nobody_is_left"]  # of each test here

STEPS = "train.steps=14"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_text(folder / "text.txt", num_documents=300)
    return folder


@pytest.fixture(scope="session")
def unbroken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    Started(corpus, folder, STEPS).end().must(code=0, within=STARTING, words=[], commits=[14, 12])
    return folder
