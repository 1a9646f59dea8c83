"""The estimate of activations, against what autograd keeps of real forward passes."""

import pytest
import torch
from torch import Tensor

from trainers.build import as_objective
from trainers.compose import compose
from trainers.config import Config
from trainers.data.tokenizer import SpecialIds
from trainers.models import build_model
from trainers.objectives.cross_entropy import PIECES
from trainers.planner.activations import activation_bytes
from trainers.planner.work import sample_sizes
from trainers.run.engine import DTYPES
from trainers.run.fit import SavedBytes
from trainers.run.speed import set_speed

VOCABULARY = 304
# Without dropout: on a CPU it keeps torch from the attention that keeps no scores.
SMALL = ("model.layers=8", "model.hidden=64", "model.intermediate=256", "model.heads=2")
LENGTH = 128


def small(experiment: str, *words: str) -> Config:
    return compose(
        [
            f"experiment={experiment}",
            *SMALL,
            "model.dropout=0",
            f"objective.sequence_length={LENGTH}",
            "batch.global_size=4",
            *(["objective.max_predictions=20"] if experiment == "quickstart" else []),
            *words,
        ],
        1,
    )


def batch_of(config: Config) -> dict[str, Tensor]:
    size, (tokens, labels) = config.batch.micro_size, sample_sizes(config.objective)
    ids = torch.randint(5, 300, (size, LENGTH))
    match config.objective.name:
        case "masked_lm":
            positions = torch.arange(labels).expand(size, labels)
            asked = {"masked_positions": positions, "masked_labels": ids[:, :labels]}
            return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), **asked}
        case "causal_lm":
            return {"input_ids": ids, "labels": ids}
        case _:
            return {"input_ids": ids[:, : tokens - labels], "labels": ids[:, :labels].contiguous()}


def measured(config: Config) -> int:
    """Bytes that autograd keeps, parameters apart."""
    model = build_model(config.model, VOCABULARY, SpecialIds(pad=0, eos=1), seed=0)
    module = as_objective(config.objective.name, model).to(DTYPES[config.runtime.dtype]).train()
    set_speed(module, config.runtime)
    saved = SavedBytes(module)
    with saved:
        module(batch_of(config))
    return saved.total


def standing(config: Config) -> float:
    """The estimate without logits, which are gone when the forward pass is over."""
    labels = config.batch.micro_size * sample_sizes(config.objective)[1]
    width = DTYPES[config.runtime.dtype].itemsize
    piece = min(labels, PIECES["cuda"]) * VOCABULARY * (8 + width)
    return activation_bytes(config, VOCABULARY) - piece


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "experiment", ["quickstart", "quickstart_gpt2", "quickstart_llama", "quickstart_t5"]
)
def test_what_autograd_keeps(experiment: str, dtype: str) -> None:
    config = small(experiment, f"runtime.dtype={dtype}")
    assert standing(config) == pytest.approx(measured(config), rel=0.06)


def test_checkpointed_layers_keep_their_input() -> None:
    config = small("quickstart_gpt2", "runtime.activation_checkpointing=true")
    layers = small("quickstart_gpt2", "runtime.activation_checkpointing=true", "model.layers=7")
    one_more = activation_bytes(config, VOCABULARY) - activation_bytes(layers, VOCABULARY)
    assert one_more == measured(config) - measured(layers)


def test_dropout_keeps_a_byte_for_each_number() -> None:
    dry, wet = small("quickstart"), small("quickstart", "model.dropout=0.1")
    layers, tokens, hidden = 8, 4 * LENGTH, 64
    more = activation_bytes(wet, VOCABULARY) - activation_bytes(dry, VOCABULARY)
    assert more == 2 * layers * tokens * hidden
