"""The objective is the model's own loss, and with borders that of each document by itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.trainers.data.corpus import VOCAB_SIZE, random_store
from tests.trainers.objectives.test_masked_lm import MODEL
from trainers.config import ModelConfig, ObjectiveConfig
from trainers.data.causal import CausalBatches
from trainers.data.tokenizer import SpecialIds
from trainers.models import build_model
from trainers.objectives.causal_lm import CausalLM

EOS = 1
SPECIAL = SpecialIds(pad=EOS, unk=0, cls=2, sep=3, mask=4, eos=EOS)
MODELS = {
    "gpt2": replace(MODEL, name="gpt2_test", family="gpt2"),
    "llama": replace(MODEL, name="llama_test", family="llama", heads=4, kv_heads=2, rope_theta=1e4),
}


def make_batch(tmp_path, document_mask: bool) -> dict[str, torch.Tensor]:
    objective = ObjectiveConfig(name="causal_lm", sequence_length=48, document_mask=document_mask)
    store = random_store(tmp_path / "store", num_documents=60, max_sentence_tokens=6)
    arrays = CausalBatches(store, EOS, objective, seed=0).batch(np.arange(24))
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def make(model: ModelConfig) -> CausalLM:
    return CausalLM(build_model(model, VOCAB_SIZE - 3, SPECIAL, seed=1))


@pytest.fixture(params=MODELS)
def objective(request) -> CausalLM:
    return make(MODELS[request.param])


def test_without_borders_it_is_the_models_own_loss(tmp_path, objective) -> None:
    batch = make_batch(tmp_path, document_mask=False)
    logits = objective.model(input_ids=batch["input_ids"]).logits
    wanted = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
    with torch.no_grad():
        answered = objective(batch)
    torch.testing.assert_close(objective(batch).loss["lm"], wanted)
    assert answered.correct["lm"] == (logits.argmax(-1) == batch["labels"]).sum()


def test_with_borders_each_document_is_as_if_it_were_alone(tmp_path, objective) -> None:
    batch = make_batch(tmp_path, document_mask=True)
    wanted, num_documents = 0.0, 0
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        starts = sorted({0, *torch.nonzero(ids == EOS).flatten().tolist(), len(ids)})
        for start, end in zip(starts[:-1], starts[1:], strict=True):
            logits = objective.model(input_ids=ids[None, start:end]).logits[0]
            wanted += cross_entropy(logits, labels[start:end], reduction="sum").item()
            num_documents += 1
    assert num_documents > 12
    assert objective(batch).loss["lm"].item() == pytest.approx(wanted, rel=1e-5)


def test_every_parameter_gets_a_gradient_and_the_head_is_tied(tmp_path, objective) -> None:
    batch = make_batch(tmp_path, document_mask=True)
    objective(batch).loss["lm"].backward()
    assert all(param.grad is not None for param in objective.parameters())
    assert objective.model.lm_head.weight is objective.model.get_input_embeddings().weight
    assert objective.model.config.vocab_size == VOCAB_SIZE  # padded to a multiple of 8


def test_the_end_of_a_text_is_learned_also_where_it_stands_for_padding(tmp_path) -> None:
    """LLaMA's embedding has no gradient at its padding, and GPT-2's vocabulary no token for it."""
    objective = make(MODELS["llama"])
    batch = make_batch(tmp_path, document_mask=True)
    embedding = objective.model.get_input_embeddings()
    assert embedding.padding_idx is None
    hidden = objective.model.base_model(input_ids=batch["input_ids"]).last_hidden_state
    hidden.square().sum().backward()  # not through the head
    assert embedding.weight.grad[EOS].abs().sum() > 0
