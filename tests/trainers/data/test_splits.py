"""The data of the phases of a run."""

from pathlib import Path

import pytest

from tests.trainers.data.corpus import write_text
from trainers.compose import compose
from trainers.data import prepare, splits


def test_the_text_is_hashed_once_for_all_phases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus of terabytes was read once for each phase before a run could start."""
    text = write_text(tmp_path / "a.txt", num_documents=80)
    config = compose(
        [
            *("data=text", f"data.path={text}", f"data.cache_dir={tmp_path / 'cache'}"),
            *("data.vocab_size=300", "batch.global_size=4", "objective.max_predictions=10"),
            "train.phases=[{share: 0.5, sequence_length: 32}, {share: 0.5, sequence_length: 64}]",
        ],
        1,
    )
    opened = []

    def open_source(data):
        opened.append(data)
        return source(data)

    source = prepare.open_source
    monkeypatch.setattr(prepare, "open_source", open_source)
    short, long = splits.open_phases(config)
    assert len(opened) == 1
    assert short.train.num_samples > long.train.num_samples > 0
    assert short.fingerprint == long.fingerprint
