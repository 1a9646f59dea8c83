"""What is learned from packed rows is what is learned from the same samples padded."""

import numpy as np
import pytest
import torch

from tests.trainers.data.corpus import SPECIAL, VOCAB_SIZE, objective_config, random_store
from tests.trainers.objectives.test_masked_lm import MODEL
from trainers.data.masked import MaskedLMBatches
from trainers.data.packed import PackedMLMBatches
from trainers.models import build_model
from trainers.objectives.masked_lm import MaskedLM
from trainers.objectives.packed_attention import lengths, offsets, own_sample_mask, places
from trainers.run.attention import _Calls

WAYS = ("jagged", "in turn", "masked")
OBJECTIVE = objective_config(next_sentence=False, packing=True)


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory):
    """Packed rows, and the very samples in them, padded."""
    folder = tmp_path_factory.mktemp("packed")
    store = random_store(folder / "s", num_documents=60, max_document_sentences=2)
    single = MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, OBJECTIVE, seed=0)
    packed = PackedMLMBatches(single, SPECIAL.pad, OBJECTIVE, 0, folder)
    positions = np.arange(10)
    _, epoch, sample = packed._drawn(positions)
    assert len(sample) > 16
    return tensors(packed.batch(positions)), tensors(single.samples(epoch, sample))


def model() -> MaskedLM:
    return MaskedLM(build_model(MODEL, VOCAB_SIZE, SPECIAL, seed=1))


def gradients(objective: MaskedLM, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(objective.parameters())))


def assert_close(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    """Up to rounding, which is all that the biases of keys get."""
    largest = max(grad.abs().max().item() for grad in wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * largest)


def test_losses_and_gradients_are_those_of_the_padded_samples(both) -> None:
    packed, padded = both
    objective = model()
    with torch.no_grad():  # right answers are counted in evaluations alone
        one, other = objective(packed), objective(padded)
    assert one.correct["mlm"] == other.correct["mlm"]
    one, other = objective(packed), objective(padded)
    torch.testing.assert_close(one.loss["mlm"], other.loss["mlm"], rtol=1e-5, atol=0)
    assert_close(gradients(objective, one.loss["mlm"]), gradients(objective, other.loss["mlm"]))


def test_a_sample_does_not_see_its_neighbours(both) -> None:
    packed, _ = both
    objective = model().eval()
    with torch.no_grad():
        before = objective._hidden(packed, "masked").last_hidden_state
        changed = {**packed, "input_ids": packed["input_ids"].clone()}
        second = int(packed["sample_starts"][0, 1])
        changed["input_ids"][0, second:] = 7
        after = objective._hidden(changed, "masked").last_hidden_state
    torch.testing.assert_close(after[0, :second], before[0, :second])
    assert (after[0, second:] - before[0, second:]).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_other_ways_are_the_masked_way(both) -> None:
    """Torch's variable-length kernels are for GPUs; here its plain code stands for them."""
    packed, _ = both
    objective = model()
    with _Calls() as calls:
        hidden = [objective._hidden(packed, way).last_hidden_state for way in WAYS]
    # Of jagged tensors torch's own question for the kernel knows nothing, and failed.
    num_samples, layers = len(lengths(packed["sample_starts"], packed["input_ids"].shape[1])), 2
    assert calls.kernels == [
        *["math (plain matrices)"] * layers,
        *["flash attention"] * num_samples * layers,
        *["flash attention"] * layers,
    ]
    for found in hidden[:2]:
        torch.testing.assert_close(found, hidden[2], rtol=1e-4, atol=1e-5)
    encoder = list(objective.model.bert.encoder.parameters())
    weight = torch.randn(hidden[0].shape, generator=torch.Generator().manual_seed(0))
    *found, wanted = (list(torch.autograd.grad((h * weight).sum(), encoder)) for h in hidden)
    for grads in found:
        assert_close(grads, wanted)


def test_places_masks_and_offsets_of_two_rows() -> None:
    starts = torch.tensor([[0, 2, 5, 5], [0, 5, 5, 5]])
    position, sample = places(starts, 5)
    assert position.tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert sample.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert own_sample_mask(sample)[:, 0, 1].int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert offsets(starts, 5).tolist() == [0, 2, 5, 5, 5, 10, 10, 10, 10]
    assert lengths(starts, 5) == [2, 3, 5]
