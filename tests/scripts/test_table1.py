"""The planner beside Table 1: the page shows what the plan gives, and how far off it is."""

from pathlib import Path

import pytest

from scripts import table1

PAGE = Path(__file__).resolve().parents[2] / "docs" / "planner.md"


def test_the_page_shows_this() -> None:
    shown = PAGE.read_text().split("<!-- table1 -->\n")[1].split("<!-- end -->")[0]
    assert shown == table1.tables()


def less_came(sizes: dict[str, float]) -> dict[str, float]:
    return {name: size - sizes["CAME"] for name, size in sizes.items()}


def test_differences_of_table_1() -> None:
    paper = less_came(table1.published())
    assert (paper["Adam"], paper["Adafactor"]) == pytest.approx((1.17, -0.07))
    plan = table1.plan_of(table1.HALF)
    state = less_came(table1.standing(plan))
    assert state["Adam"] == pytest.approx(paper["Adam"], abs=0.09)  # 7 % too much
    assert -0.005 < state["Adafactor"] < 0  # the sign; the rest is no state
    half = less_came(table1.peaks(plan))
    whole = less_came(table1.peaks(table1.plan_of(table1.WHOLE)))
    for name in ("Adam", "LAMB", "Adafactor"):
        assert half[name] < paper[name] < whole[name], name
        assert (half[name] + whole[name]) / 2 == pytest.approx(paper[name], abs=0.02), name


def test_table_1_is_the_plan_and_a_constant() -> None:
    peaks, paper = table1.peaks(table1.plan_of(table1.HALF)), table1.published()
    rest = [paper[name] - peak for name, peak in peaks.items()]
    assert max(rest) - min(rest) < 0.06
