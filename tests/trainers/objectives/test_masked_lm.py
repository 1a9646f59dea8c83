"""The objective's sums are those of the whole model, computed the long way."""

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tests.trainers.data.corpus import SPECIAL, VOCAB_SIZE, objective_config, random_store
from trainers.config import ModelConfig
from trainers.data.masked import MaskedLMBatches
from trainers.models import build_model
from trainers.objectives.masked_lm import MaskedLM

MODEL = ModelConfig(
    name="bert_test",
    family="bert",
    layers=2,
    hidden=32,
    heads=2,
    intermediate=64,
    max_positions=64,
    dropout=0.0,
    unigram_bias=False,
)


def make_batch(tmp_path, **objective) -> dict[str, torch.Tensor]:
    store = random_store(tmp_path / "store")
    batches = MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, objective_config(**objective), seed=0)
    arrays = batches.batch(np.arange(6))
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def test_sums_are_those_of_the_full_vocabulary_head(tmp_path) -> None:
    batch = make_batch(tmp_path)
    objective = MaskedLM(build_model(MODEL, VOCAB_SIZE, SPECIAL, seed=1))
    sums = objective(batch)
    with torch.no_grad():
        answered = objective(batch)
    output = objective.model(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        token_type_ids=batch["token_type_ids"],
    )
    # labels at their places in the text, as transformers' own loss wants them
    labels = torch.full_like(batch["input_ids"], -100)
    for row, (positions, values) in enumerate(
        zip(batch["masked_positions"], batch["masked_labels"], strict=True)
    ):
        labels[row, positions[values >= 0]] = values[values >= 0]
    wanted = cross_entropy(
        output.prediction_logits.flatten(0, 1), labels.flatten(), reduction="sum"
    )
    torch.testing.assert_close(sums.loss["mlm"], wanted)
    correct = (output.prediction_logits.argmax(-1) == labels).sum()
    assert answered.correct["mlm"] == correct
    nsp = cross_entropy(
        output.seq_relationship_logits, batch["next_sentence_label"], reduction="sum"
    )
    torch.testing.assert_close(sums.loss["nsp"], nsp)
    assert 0 <= sums.correct["nsp"] <= 6


def test_without_pairs_every_parameter_still_gets_a_gradient(tmp_path) -> None:
    batch = make_batch(tmp_path, next_sentence=False)
    objective = MaskedLM(build_model(MODEL, VOCAB_SIZE, SPECIAL, seed=1))
    sums = objective(batch)
    assert sums.loss.keys() == sums.correct.keys() == {"mlm"}
    sums.loss["mlm"].backward()
    assert all(param.grad is not None for param in objective.parameters())


def test_weights_depend_on_the_seed_alone_and_are_tied() -> None:
    first, again, other = (build_model(MODEL, VOCAB_SIZE - 3, SPECIAL, seed) for seed in (1, 1, 2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    assert not torch.equal(
        first.cls.predictions.transform.dense.weight, other.cls.predictions.transform.dense.weight
    )
    assert first.cls.predictions.decoder.weight is first.bert.embeddings.word_embeddings.weight
    assert first.config.vocab_size == VOCAB_SIZE  # padded to a multiple of 8
