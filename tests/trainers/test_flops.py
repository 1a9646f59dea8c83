"""The FLOP model, against numbers that others have published and against torch's own count."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.trainers.data.corpus import SPECIAL
from trainers.compose import compose
from trainers.config import Config
from trainers.data.tokenizer import SpecialIds
from trainers.flops import layer_weights, peak_flops, training_flops
from trainers.models import build_model
from trainers.objectives.masked_lm import MaskedLM
from trainers.objectives.span_corruption import SpanCorruption


def bert(*words: str) -> Config:
    return compose([*words, "objective.sequence_length=128", "objective.max_predictions=20"], 1)


def test_bert_large_at_length_128_with_a_head_at_masked_positions() -> None:
    found = training_flops(bert("model=bert_large"), 30528, 128, {"mlm": 20, "nsp": 1})
    assert found / 128 == pytest.approx(1.88e9, rel=0.005)


def test_weights_of_bert_large() -> None:
    assert layer_weights(bert("model=bert_large").model) == 24 * 12 * 1024**2


@pytest.mark.parametrize("name", ["gpt2_small", "llama_1b"])
def test_weights_are_those_of_the_model(name: str) -> None:
    config = compose([f"model={name}", "experiment=quickstart_gpt2"], 1).model
    with torch.device("meta"):
        model = build_model(config, 1000, SPECIAL, seed=0)
    found = [
        param.numel()
        for path, param in model.base_model.named_parameters()
        if param.dim() == 2 and "wte" not in path and "wpe" not in path and "embed" not in path
    ]
    assert layer_weights(config) == sum(found)


def test_torch_counts_the_same() -> None:
    config = bert("model.layers=2", "model.hidden=64", "model.intermediate=256", "model.heads=2")
    module = MaskedLM(build_model(config.model, 1000, SPECIAL, seed=0))
    ids = torch.randint(5, 1000, (4, 128))
    batch = {
        "input_ids": ids,
        "token_type_ids": torch.zeros_like(ids),
        "masked_positions": torch.arange(20).expand(4, 20),
        "masked_labels": ids[:, :20],
    }
    # Of a fused kernel on a CPU torch counts nothing.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        module(batch).loss["mlm"].backward()
    found = training_flops(config, 1000, 4 * 128, {"mlm": 80})
    next_sentence = 6 * 4 * (64 * 64 + 64 * 2)  # one row of a sequence: left out of the model
    assert found == counted.get_total_flops() - next_sentence


def test_torch_counts_the_same_of_a_t5() -> None:
    config = compose(["experiment=quickstart_t5"], 1)
    special = SpecialIds(pad=0, eos=1)
    module = SpanCorruption(build_model(config.model, 1000, special, seed=0))
    ids = torch.randint(5, 1000, (4, 114))
    batch = {"input_ids": ids, "labels": ids[:, :26].contiguous()}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        module(batch).loss["span"].backward()
    found = training_flops(config, 1000, 4 * (114 + 26), {"span": 4 * 26})
    assert found == counted.get_total_flops()


@pytest.mark.parametrize(
    ("words", "device", "peak"),
    [
        ((), "NVIDIA H200", None),  # in float32
        (("runtime.dtype=bfloat16",), "NVIDIA H200", 989e12),
        (("runtime.dtype=bfloat16",), "NVIDIA A100-SXM4-80GB", 312e12),
        (("runtime.dtype=bfloat16",), "NVIDIA H100 PCIe", 756e12),
        (("runtime.dtype=bfloat16",), "CPU, 2 threads per rank", None),
        (("runtime.peak_tflops=1.5",), "CPU, 2 threads per rank", 1.5e12),
    ],
)
def test_the_peak_goes_by_the_name_of_the_device(
    words: tuple[str, ...], device: str, peak: float | None
) -> None:
    assert peak_flops(compose(list(words), 1), device) == peak
