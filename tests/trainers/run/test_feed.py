"""What a rank reads, how it is counted, and that nothing in a micro batch waits for the device."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainers.data.corpus import write_text
from trainers.build import build_module
from trainers.compose import compose
from trainers.config import Config
from trainers.data.splits import Splits, open_phases
from trainers.phases import plan
from trainers.run.attention import attention_kernels
from trainers.run.distributed import World
from trainers.run.feed import Counts, Feed, Micro, without_waste
from trainers.run.loop import train_step
from trainers.run.meter import metrics
from trainers.run.stopping import Stopping
from trainers.signals import Listener

WORDS = (
    *("experiment=quickstart", "data=text", "data.vocab_size=300", "batch.global_size=24"),
    *("train.steps=8", "batch.ramp_from=12", "batch.ramp_fraction=0.25", "batch.micro_size=3"),
    *("objective.sequence_length=48", "objective.max_predictions=9", "model.hidden=32"),
    "train.phases=[{share:0.5},{share:0.5,sequence_length:64,micro_size:6}]",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("corpus")
    text = write_text(folder / "text.txt", num_documents=300)
    return compose([*WORDS, f"data.path={text}", f"data.cache_dir={folder}"], 2)


@pytest.fixture(scope="module")
def data(config: Config) -> tuple[Splits, ...]:
    return open_phases(config)


def world(rank: int = 0, world_size: int = 1) -> World:
    return World(rank, world_size, torch.device("cpu"))


def fed(config: Config, data: tuple[Splits, ...], place: World, start: int = 0) -> list[Micro]:
    with Feed(config, data, place, start) as feed:
        return [micro for step in range(start + 1, 9) for micro in feed.step(step)]


def test_two_ranks_read_what_one_does(config: Config, data: tuple[Splits, ...]) -> None:
    whole, halves = fed(config, data, world()), [fed(config, data, world(r, 2)) for r in range(2)]
    for step in range(1, 9):
        alone = [m.batch["input_ids"] for m in whole if m.step == step]
        pairs = zip(*([m for m in half if m.step == step] for half in halves), strict=True)
        both = [micro.batch["input_ids"] for pair in pairs for micro in pair]
        assert torch.equal(torch.cat(alone), torch.cat(both))
        stretch = plan(config).at(step)
        assert len(torch.cat(alone)) == stretch.size
        assert torch.cat(alone).shape[1] == (48 if step <= 4 else 64)
    assert {m.num_micro for m in whole if m.step == 1} == {4}
    assert {m.num_micro for m in whole if m.step == 8} == {4}


def test_a_resumed_feed_goes_on_in_the_right_phase(
    config: Config, data: tuple[Splits, ...]
) -> None:
    whole = [micro for micro in fed(config, data, world()) if micro.step > 5]
    resumed = fed(config, data, world(), start=5)
    for one, other in zip(whole, resumed, strict=True):
        assert one.step == other.step and one.num_labels == other.num_labels
        assert torch.equal(one.batch["input_ids"], other.batch["input_ids"])


def test_a_batch_without_padding_has_no_mask(data: tuple[Splits, ...]) -> None:
    batch = data[0].train.batch(np.arange(3))
    batch["attention_mask"][:] = 1
    assert "attention_mask" not in without_waste(batch)
    batch["attention_mask"][0, -1] = 0
    assert "attention_mask" in without_waste(batch)


def test_slots_that_ask_nothing_change_no_sum(config: Config, data: tuple[Splits, ...]) -> None:
    batch = data[0].train.batch(np.arange(9))
    module = build_module(config, data[0])
    whole, less = (
        module({name: torch.from_numpy(array) for name, array in found.items()})
        for found in (batch, without_waste(batch))
    )
    assert batch["masked_labels"].size > len(without_waste(batch)["masked_labels"]) % 32 == 0
    torch.testing.assert_close(less.stack(), whole.stack())


def test_counts_are_of_all_ranks(config: Config, data: tuple[Splits, ...]) -> None:
    found = []
    for place in (world(), world(1, 2)):
        with Feed(config, data, place, 0) as feed:
            real = sum(
                int((m.batch["input_ids"] != 0).sum()) for s in range(1, 9) for m in feed.step(s)
            )
            found.append(feed.counts)
            if place.world_size == 1:
                assert real == feed.counts.tokens
    assert found[0].steps == 8 and found[0].samples == 2 * 12 + 6 * 24
    assert (found[0].tokens, found[0].flops) == (found[1].tokens, found[1].flops)


def test_what_counts_mean() -> None:
    found = metrics(Counts(steps=4, samples=8, tokens=80, flops=3e9, waited=0.5), 2.0, peak=6e9)
    assert found == {
        "train/seconds": 0.5,
        "train/tokens_per_second": 40,
        "train/samples_per_second": 4,
        "train/data_wait": 0.25,
        "train/mfu": 0.25,
    }
    assert "train/mfu" not in metrics(Counts(steps=1), 1.0, None)


class Plain:
    """An engine that is the module alone."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.basic_optimizer = module, torch.optim.SGD(module.parameters())

    def __call__(self, batch: dict[str, Any]) -> Any:
        return self.module(batch)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        pass


class Waits(TorchDispatchMode):
    """Counts the operations for which the host would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if function in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.masked_select.default,
        ):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def test_no_micro_batch_waits_for_the_device(config: Config, data: tuple[Splits, ...]) -> None:
    engine = Plain(build_module(config, data[0]))
    with Feed(config, data, world(), 0) as feed:
        micros = list(feed.step(1))
        assert any("attention_mask" in micro.batch for micro in micros)
        with Waits() as waits:
            stopping = Stopping(Listener(), world(), 1)
            loss = train_step(config, engine, world(), iter(micros), 0.1, 1, stopping.ask)
        assert waits.found == []
        with Waits() as waits:
            loss.item()
        assert len(waits.found) == 1  # it would have been noticed


def test_the_kernel_of_attention_is_told(config: Config, data: tuple[Splits, ...]) -> None:
    module = build_module(config, data[0])
    with Feed(config, data, world(), 0) as feed:
        batch = next(feed.step(1)).batch
    assert attention_kernels(module, batch) == "flash attention"
    # torch has no CPU kernel with dropout but the plain one
    for layer in module.model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.1
    assert attention_kernels(module, batch) == "math (plain matrices)"
