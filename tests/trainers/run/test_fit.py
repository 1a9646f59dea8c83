"""The largest micro batch that fits."""

from pathlib import Path

import pytest
import torch

from tests.trainers.data.corpus import write_text
from trainers.build import build_module
from trainers.compose import compose
from trainers.config import Config
from trainers.data.splits import open_phases
from trainers.errors import ConfigError
from trainers.phases import phase_configs
from trainers.run.distributed import World
from trainers.run.fit import fit_micro_batches, memory, next_size, standing_bytes

WORDS = (
    *("experiment=quickstart", "data=text", "data.vocab_size=300", "runtime.micro_batch=auto"),
    *("objective.sequence_length=16", "objective.max_predictions=4", "model.hidden=32"),
)


CPU = torch.device("cpu")


class Alone(World):
    """A world of one, without a process group."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


def found(folder: Path, memory_gb: float, *words: str) -> list[int]:
    text = write_text(folder / "text.txt", num_documents=300)
    given = (f"data.path={text}", f"data.cache_dir={folder}", f"runtime.memory_gb={memory_gb:.9f}")
    config = compose([*WORDS, *given, *words], 1)
    data = open_phases(config)
    fitted = fit_micro_batches(config, data, build_module(config, data[0]), Alone(0, 1, CPU))
    return [inside.batch.micro_size for inside in phase_configs(fitted)]


@pytest.mark.parametrize("most", [1, 7, 24, 32, 48, 60])
def test_the_largest_divisor_that_fits_is_found_in_few_tries(most: int) -> None:
    for room in range(1, most + 1):
        best, failed, tries = 1, None, 0
        while size := next_size(most, best, failed):
            best, failed, tries = (size, failed, tries) if size <= room else (best, size, tries)
            tries += 1
        assert best == max(size for size in range(1, room + 1) if most % size == 0)
        assert tries <= 8


def test_more_memory_is_a_larger_micro_batch_until_the_whole_fits(tmp_path: Path) -> None:
    # 2 MB lie there all the time, and a sample needs 0.17.
    sizes = [found(tmp_path, megabytes / 1000)[0] for megabytes in (0.1, 2.4, 3.5, 100)]
    assert sizes == [1, 2, 8, 32]  # 32 samples are the whole batch


def test_each_phase_has_its_own(tmp_path: Path) -> None:
    phases = "train.phases=[{share:0.5},{share:0.5,sequence_length:128,max_predictions:19}]"
    short, long = found(tmp_path, 0.012, phases)
    assert (short, long) == (32, 4)


def config(*words: str) -> Config:
    return compose([*WORDS, "data.path=x", *words], 2)


def test_what_lies_in_memory_all_the_time() -> None:
    module = torch.nn.Linear(1000, 1000, bias=False)
    adamw = ("optimizer=adamw", "batch.global_size=32")
    # Weights, gradients, AdamW's two, the slice once more; the bucket in which ranks sum.
    assert standing_bytes(config("zero.stage=1", *adamw), module, Alone(0, 2, CPU)) == 1e6 * (
        4 + 4 + 8 / 2 + 4 / 2 + 4
    )
    half = config("zero.stage=2", "runtime.dtype=bfloat16", *adamw)
    assert standing_bytes(half, module, Alone(0, 4, CPU)) == 1e6 * (
        2 + 4 / 4 + 8 / 4 + 4 / 4 + 2 + 4
    )
    one = torch.device("meta")  # as if it were a GPU: there the bucket is there as a whole
    assert standing_bytes(config("zero.stage=1", *adamw), module, Alone(0, 2, one)) == 2e9 + 1e6 * (
        4 + 4 + 8 / 2 + 4 / 2
    )
    assert memory(config(), World(0, 1, CPU)) > 1e8


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave batch.micro_size at 0"):
        config("batch.micro_size=4")
    with pytest.raises(ConfigError, match="is for runtime.micro_batch=auto alone"):
        config("runtime.micro_batch=given", "runtime.memory_gb=1")
    with pytest.raises(ConfigError, match="compile needs zero.stage 0, 1 or 2"):
        config("runtime.compile=true", "zero.stage=3")
