"""Models as they come out of the configuration."""

import numpy as np
import torch

from tests.trainers.objectives.test_masked_lm import MODEL
from trainers.models import build_bert, set_unigram_bias


def test_the_head_starts_with_the_frequencies_of_words() -> None:
    model = build_bert(MODEL, vocab_size=5, pad_id=0, seed=0)
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
