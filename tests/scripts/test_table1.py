"""The planner beside the authors' memory: the page shows what the plan gives."""

from pathlib import Path

import pytest

from scripts import table1

PAGE = Path(__file__).resolve().parents[2] / "docs" / "planner.md"


def test_the_page_shows_this() -> None:
    shown = PAGE.read_text().split("<!-- table1 -->\n")[1].split("<!-- end -->")[0]
    assert shown == table1.tables()


@pytest.mark.parametrize("words", [table1.HALF, table1.WHOLE])
def test_differences_from_came_by_hand(words: tuple[str, ...]) -> None:
    """Adam's second moment is a number a parameter; what a step makes counts as far as it is larger
    than the activations, which are gone by then. The authors' numbers are on the page alone: which
    of both settings theirs was nearer to is not known."""
    plan = table1.plan_of("bert_large", words)
    state = table1.less_came(table1.standing("bert_large", plan))
    second = 4 * plan.num_params / table1.GIB
    assert state["Adam"] == state["LAMB"] == pytest.approx(second, abs=0.005)  # factors: 4 MB
    assert -0.003 < state["Adafactor"] < -0.001
    activations = plan.rows["came"].memory.activations / table1.GIB
    matrix = 4 * 30_522 * 1024 / table1.GIB
    least = {"Adam": 0, "LAMB": 0, "Adafactor": 2, "CAME": 3}
    most = {name: max(activations, number * matrix) for name, number in least.items()}
    found = table1.less_came(table1.peaks("bert_large", plan))
    for name, difference in found.items():
        by_hand = state[name] + most[name] - most["CAME"]
        assert difference == pytest.approx(by_hand, abs=1e-6), name


def test_gpt2_medium_differs_by_its_state_alone() -> None:
    """Of 1,024 tokens the activations are larger than what a step makes."""
    plan = table1.plan_of("gpt2_medium", table1.HALF)
    assert plan.num_params == 354_823_168 + 7 * 1024  # as published, its vocabulary rounded up
    state = table1.less_came(table1.standing("gpt2_medium", plan))["AdamW"]
    assert state == pytest.approx(4 * plan.num_params / table1.GIB, abs=0.005)
    assert table1.less_came(table1.peaks("gpt2_medium", plan))["AdamW"] == pytest.approx(state)
