"""What the faulty runs share: a text, and the run that nothing happened to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.runs import Started
from tests.trainers.data.corpus import write_text

STEPS = "train.steps=14"


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """A test that fails does not leave its runs behind."""
    yield
    while Started.running:
        Started.running.pop().kill()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_text(folder / "text.txt", num_documents=300)
    return folder


@pytest.fixture(scope="session")
def unbroken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    ended = Started(corpus, folder, STEPS).end()
    assert ended.code == 0, ended.output
    return folder
