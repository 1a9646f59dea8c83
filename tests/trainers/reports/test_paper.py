"""The paper's curves are those that were digitised."""

import pytest

from trainers.errors import ConfigError
from trainers.reports.paper import paper_figure

# At step 20,000, from the table of the figures' readings
FINAL = {
    "bert_large_8k": {"came": 0.665, "adamw": 0.655, "adafactor": 0.633},
    "bert_large_32k": {"came": 0.680, "adamw": 0.646, "adafactor": 0.619, "lamb": 0.689},
}


@pytest.mark.parametrize("name", FINAL)
def test_bert(name: str) -> None:
    figure = paper_figure(name)
    assert figure.curves.keys() == FINAL[name].keys()
    for optimizer, accuracy in FINAL[name].items():
        curve = figure.curves[optimizer]
        assert curve.steps[-1] == figure.steps == 20_000
        assert curve.last == pytest.approx(accuracy, abs=0.001)
        assert all(curve.steps[1:] > curve.steps[:-1])


def test_gpt2() -> None:
    figure = paper_figure("gpt2_medium")
    last = {name: (int(curve.steps[-1]), curve.last) for name, curve in figure.curves.items()}
    assert last == {
        "came": (119_000, 3.891),
        "adamw": (119_000, 3.826),
        "adafactor": (119_000, 3.97),
    }


def test_an_unknown_one_is_answered_with_the_list() -> None:
    with pytest.raises(
        ConfigError, match="'bert': choose one of bert_large_8k, bert_large_32k, gpt2_medium"
    ):
        paper_figure("bert")
