"""What is learned by each objective does not depend on the number of processes."""

from pathlib import Path

import pytest

from tests.trainers.run.test_loop import corpus, losses, train

__all__ = ["corpus"]  # a fixture

SPANS = (
    *("experiment=quickstart_t5", "data=text", "data.tokenizer_model=unigram"),
    *("model.max_positions=null", "objective.max_predictions=null"),
)
PACKED = (
    *("objective.next_sentence=false", "objective.packing=true", "objective.mask_fraction=0.2"),
    "objective.max_predictions=10",
    "train.phases=[{share: 0.6, sequence_length: 24}, {share: 0.4}]",
)


@pytest.mark.parametrize(("words", "stage"), [(SPANS, 3), (PACKED, 2)], ids=["spans", "packed"])
def test_losses_are_those_of_one_process(
    corpus: Path, tmp_path: Path, words: tuple[str, ...], stage: int
) -> None:
    ways = {
        "alone": ("launch.processes=1", "batch.micro_size=24"),
        # 4 accumulations
        "sharded": ("launch.processes=2", f"zero.stage={stage}", "batch.micro_size=3"),
    }
    for name, way in ways.items():
        train(corpus, tmp_path / name, "train.steps=5", *words, *way)
    wanted, found = losses(tmp_path / "alone"), losses(tmp_path / "sharded")
    assert list(wanted) == [1, 2, 3, 4, 5] and len(set(wanted.values())) == 5
    assert found == pytest.approx(wanted, abs=1e-4)
