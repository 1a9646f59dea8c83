"""The objective's sums are transformers' own loss, and every weight of a T5 learns."""

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tests.trainers.data.corpus import random_store
from tests.trainers.data.test_span_corruption import SPECIAL, objective
from trainers.config import ModelConfig
from trainers.data.span_corruption import SpanCorruptionBatches
from trainers.models import build_model
from trainers.objectives.span_corruption import SpanCorruption

MODEL = ModelConfig(
    name="t5_test", family="t5", layers=2, hidden=32, heads=2, intermediate=64, dropout=0.0
)
VOCAB_SIZE = 1100


def make_batch(tmp_path) -> dict[str, torch.Tensor]:
    batches = SpanCorruptionBatches(random_store(tmp_path / "s"), SPECIAL, objective(), seed=0)
    return {name: torch.from_numpy(a) for name, a in batches.batch(np.arange(6)).items()}


def make() -> SpanCorruption:
    return SpanCorruption(build_model(MODEL, VOCAB_SIZE, SPECIAL, seed=1))


def test_sums_are_those_of_the_whole_model(tmp_path) -> None:
    batch, asked = make_batch(tmp_path), make()
    logits = asked.model(input_ids=batch["input_ids"], labels=batch["labels"]).logits
    wanted = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
    torch.testing.assert_close(asked(batch).loss["span"], wanted)
    with torch.no_grad():
        sums = asked(batch)
    torch.testing.assert_close(sums.loss["span"], wanted)
    assert sums.correct["span"] == (logits.argmax(-1) == batch["labels"]).sum()


def test_every_weight_learns_and_one_embedding_serves_all_ends(tmp_path) -> None:
    asked = make()
    asked(make_batch(tmp_path)).loss["span"].backward()
    assert all(param.grad is not None for param in asked.parameters())
    shared = asked.model.shared.weight
    tied = (asked.model.encoder.embed_tokens, asked.model.decoder.embed_tokens, asked.model.lm_head)
    assert all(module.weight is shared for module in tied)
    assert shared.shape[0] == 1104  # padded to a multiple of 8
    assert asked.model.config._attn_implementation == "sdpa"


def test_the_first_loss_is_that_of_a_uniform_guess_or_little_more(tmp_path) -> None:
    """Embeddings of unit variance, scaled at the head: a wrong scale would start at dozens."""
    batch = make_batch(tmp_path)
    loss = make()(batch).loss["span"] / batch["labels"].numel()
    assert abs(loss.item() - np.log(1104)) < 1.0


def test_what_is_later_in_the_targets_is_not_seen(tmp_path) -> None:
    batch, asked = make_batch(tmp_path), make().eval()
    seen = {**batch, "labels": batch["labels"].clone()}
    seen["labels"][:, 5:] = 7
    with torch.no_grad():
        hidden = [
            asked.model(input_ids=b["input_ids"], labels=b["labels"]).logits for b in (batch, seen)
        ]
    torch.testing.assert_close(hidden[0][:, :6], hidden[1][:, :6])
    assert (hidden[0][:, 6:] - hidden[1][:, 6:]).abs().max() > 0.01
