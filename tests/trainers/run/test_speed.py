"""What makes a run faster or smaller does not change what it learns."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.trainers.data.corpus import SPECIAL, VOCAB_SIZE, objective_config, random_store
from tests.trainers.objectives.test_masked_lm import MODEL
from trainers.data.masked import MaskedLMBatches
from trainers.models import build_model
from trainers.objectives.masked_lm import MaskedLM
from trainers.reports.runs import read_ledger
from trainers.run.engine import moments
from trainers.run.fit import SavedBytes
from trainers.run.meter import peak_memory
from trainers.run.speed import checkpoint_activations


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    store = random_store(tmp_path_factory.mktemp("data") / "store")
    batches = MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, objective_config(), seed=0)
    return {name: torch.from_numpy(array) for name, array in batches.batch(np.arange(6)).items()}


def learned(module: nn.Module, batch: dict[str, Tensor]) -> tuple[float, dict[str, Tensor], int]:
    """Loss, gradients by parameter, and the bytes that forward keeps for backward."""
    torch.manual_seed(3)  # of dropout
    module.train()
    saved = SavedBytes(module)
    with saved:
        loss = module(batch).share({"mlm": 50, "nsp": 6})
    loss.backward()
    gradients = {name: param.grad for name, param in module.named_parameters()}
    module.zero_grad(set_to_none=True)
    return loss.item(), gradients, saved.total


def make(dropout: float) -> MaskedLM:
    module = MaskedLM(build_model(MODEL, VOCAB_SIZE, SPECIAL, seed=1))
    for inner in module.modules():
        if isinstance(inner, nn.Dropout):
            inner.p = dropout
    return module


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activation_checkpointing(batch: dict[str, Tensor], dropout: float) -> None:
    module = make(dropout)
    loss, gradients, kept = learned(module, batch)
    checkpoint_activations(module)
    again, others, less = learned(module, batch)
    assert again == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(others, gradients)
    assert less < kept / 2


def test_compiling(batch: dict[str, Tensor]) -> None:
    """With dynamo alone, which finds the graph; inductor would need a compiler and a minute."""
    module = make(0.0)
    names = [name for name, _ in module.named_parameters()]
    loss, gradients, _ = learned(module, batch)
    module.compile(backend="eager")
    again, others, _ = learned(module, batch)
    assert again == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(others, gradients)
    assert [name for name, _ in module.named_parameters()] == names


def test_the_ledger_of_adamw_is_what_it_keeps() -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4))
    module[0].bias.requires_grad_(False)  # is not trained, has no moments
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad])
    module(torch.ones(3, 5)).square().sum().backward()
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values()]
    ledger = moments(module, 2)
    assert ledger["state_bytes"] == sum(4 * value.numel() for value in kept if value.dim())
    assert ledger["num_params"] == 5 * 4 + 4 + 4
    assert ledger == read_ledger(json.dumps(ledger))


def test_peak_memory_grows_with_what_is_used() -> None:
    before = peak_memory()
    held = torch.ones(2**20 * 100)  # 400 MB
    assert peak_memory() >= held.nbytes
    assert 10**7 < before < 10**11, "bytes"
