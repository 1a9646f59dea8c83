"""Models as they come out of the configuration."""

import dataclasses

import numpy as np
import pytest
import torch
import yaml

from tests.trainers.data.corpus import SPECIAL
from tests.trainers.objectives.test_masked_lm import MODEL
from trainers.compose import CONFIGS, compose
from trainers.config import ModelConfig
from trainers.models import build_model, set_unigram_bias
from trainers.run.engine import place


def test_the_decoder_of_t5_begins_with_the_end_where_nothing_pads() -> None:
    special = dataclasses.replace(SPECIAL, pad=4, eos=4)
    config = compose(["experiment=quickstart_t5", "data=text", "data.path=x"], 1).model
    model = build_model(config, 100, special, seed=0)
    assert (model.config.decoder_start_token_id, model.config.pad_token_id) == (4, 4)


def test_rotary_frequencies_stay_in_float32() -> None:
    config = compose(["experiment=quickstart_llama", "data=text", "data.path=x"], 1).model
    model = build_model(config, 100, SPECIAL, seed=0)
    exact = model.model.rotary_emb.inv_freq.clone()
    place(model, torch.device("cpu"), "bfloat16")
    assert {param.dtype for param in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.model.rotary_emb.inv_freq, exact)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_head_starts_with_the_frequencies_of_words() -> None:
    model = build_model(MODEL, vocab_size=5, special=SPECIAL, seed=0)
    set_unigram_bias(model, np.array([0, 10, 20, 30, 40]))
    head = model.cls.predictions
    assert head.decoder.bias is head.bias
    with torch.no_grad():
        head.transform.LayerNorm.weight.zero_()  # nothing but the bias speaks
        probabilities = head(torch.zeros(1, 32)).softmax(-1)[0]
    assert len(probabilities) == 8  # padded
    torch.testing.assert_close(
        probabilities[1:5] / probabilities[1:5].sum(), torch.tensor([0.1, 0.2, 0.3, 0.4])
    )
    assert (probabilities[[0, 5, 6, 7]] < 0.011).all()


SIZES = {  # parameters in millions, and the entries of the published vocabulary
    "bert_mini": (11.27, 30522),
    "bert_base": (110, 30522),
    "bert_large": (336, 30522),
    "bert_4b": (3870, 30522),
    "gpt2_small": (124.4, 50257),
    "gpt2_medium": (354.8, 50257),
    "gpt2_large": (774.0, 50257),
    "gpt2_xl": (1557.6, 50257),
    "gpt3_125m": (125.2, 50257),
    "gpt3_350m": (355.9, 50257),
    "gpt3_1_3b": (1315.7, 50257),
    "llama_1b": (1235.8, 128256),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name: str) -> None:
    millions, vocab_size = SIZES[name]
    config = ModelConfig(**yaml.safe_load((CONFIGS / "model" / f"{name}.yaml").read_text()))
    with torch.device("meta"):
        model = build_model(config, vocab_size, SPECIAL, seed=0)
    found = sum(param.numel() for param in model.parameters()) / 1e6
    assert found == pytest.approx(millions, rel=0.002)
    assert model.config._attn_implementation == "sdpa"
