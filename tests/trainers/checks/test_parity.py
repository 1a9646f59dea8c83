"""The parity gate: lets through what shards exactly, and can refuse."""

import json
from pathlib import Path

import pytest
import torch

from trainers import check
from trainers.checks import environment, few_steps, parity, reduced
from trainers.checks.all_reduce import Speed
from trainers.checks.parity import State, differences, tolerance
from trainers.compose import compose
from trainers.data.splits import open_phases
from trainers.errors import ParityError

WORDS = ("experiment=quickstart", "zero.stage=2", "optimizer.weight_decay=0.1")

# An optimizer that takes its own slice for the whole matrix, as others do: it never asks the ranks.
LOCAL_STATISTICS = "import came.reduce; came.reduce.sum_over = lambda buffer, group: None\n"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[State]]:
    """What one process leaves, and two, and two that do not ask each other."""
    folder = tmp_path_factory.mktemp("parity")
    reduced.write_text(folder)
    small = reduced.sharded(compose(WORDS, 2), folder)
    open_phases(small)
    one = parity.train(reduced.unsharded(small), folder / "one")
    two = parity.train(small, folder / "two", leader=folder / "one")
    with pytest.MonkeyPatch.context() as patch:
        start = few_steps.START.replace("main()", LOCAL_STATISTICS + "main()")
        patch.setattr(few_steps, "START", start)
        local = parity.train(small, folder / "local", leader=folder / "one")
    return {"one": one, "two": two, "local": local}


def run(monkeypatch: pytest.MonkeyPatch, worlds, second: str, *options: str) -> int:
    """The exit code of came-check, where two ranks give what `second` has given."""
    monkeypatch.setattr(
        parity, "train", lambda _, folder, leader=None: worlds[second if leader else "one"]
    )
    monkeypatch.setattr(environment, "measure", lambda: Speed("gloo", 1e-4, 1e9))
    return check.main([*WORDS, *options])


def test_what_is_sharded_exactly_is_let_through(monkeypatch, worlds, capsys) -> None:
    assert run(monkeypatch, worlds, "two") == 0
    text = capsys.readouterr().out
    assert "## Sharded as unsharded: OK" in text
    assert "bert, masked_lm, came, ZeRO 2, float32" in text
    assert len([line for line in text.splitlines() if "rounding explains" in line]) == 3


def test_local_statistics_are_refused_by_name(monkeypatch, worlds, capsys) -> None:
    assert run(monkeypatch, worlds, "local", "--json") == ParityError.exit_code == 10
    *_, gate = json.loads(capsys.readouterr().out)["checks"]
    assert not gate["is_green"] and "another optimizer" in gate["text"]
    first = gate["details"]["differences"][0]
    assert first["name"] in gate["text"] and not first["fits"]
    assert first["value"] > 1000 * first["allowed"]
    wrong = {d["name"].partition("/")[0] for d in gate["details"]["differences"] if not d["fits"]}
    assert {"exp_avg_sq_row", "param"} <= wrong and "loss" not in wrong


def states(**changes: float) -> list[State]:
    """The start and one step; `changes` are of the second."""
    start = {"param/w": 1.0, "exp_avg/w": 0.0, "loss": 0.0}
    after = {"param/w": 1.01, "exp_avg/w": 0.5, "loss": 4.0}
    after |= {name.replace("_w", "/w"): value for name, value in changes.items()}
    return [
        {name: torch.full((8,), value, dtype=torch.float64) for name, value in state.items()}
        for state in (start, after)
    ]


def test_a_difference_is_measured_by_the_movement() -> None:
    (worst, *_) = differences(states(), states(param_w=1.01 + 2e-6), 1e-5)
    assert (worst.step, worst.name, worst.fits) == (1, "param/w", False)
    assert worst.value == pytest.approx(2e-4)
    assert worst.allowed == pytest.approx(1e-5 + 2**-23 * 1.01 / 0.01)


@pytest.mark.parametrize(("momentum", "fits"), [(0.5 * (1 + 9e-6), True), (0.5 + 6e-6, False)])
def test_state_is_measured_by_itself(momentum: float, fits: bool) -> None:
    found = {d.name: d for d in differences(states(), states(exp_avg_w=momentum), 1e-5)}
    assert found["exp_avg/w"].fits == fits


def test_another_start_is_a_difference() -> None:
    other = states()
    other[0]["param/w"] = other[0]["param/w"] + 1e-3
    (worst, *_) = differences(states(), other, 1e-5)
    assert (worst.step, worst.name, worst.fits) == (0, "param/w", False)


def test_missing_tensors_and_numbers_that_are_none_are_refused() -> None:
    fewer = [{k: v for k, v in state.items() if k != "exp_avg/w"} for state in states()]
    assert differences(states(), fewer, 1e-5)[0].name == "exp_avg/w"
    assert differences(fewer, states(), 1e-5)[0].name == "exp_avg/w"
    found = differences(states(), states(loss=float("nan")), 1e-5)
    assert found[0].name == "loss" and not found[0].fits


def test_tolerances_are_those_of_the_formats() -> None:
    words = ("experiment=bert_large_32k",)
    half = compose(words, 2, needs_text=False)
    assert tolerance(half, on_gpus=False) == 1e-5
    assert tolerance(half, on_gpus=True) == 2**-8
    assert tolerance(compose(["optimizer.momentum=int8"], 2), on_gpus=False) == 2 / 127


def test_a_rank_that_cannot_train_says_why(tmp_path: Path, capfd) -> None:
    config = reduced.sharded(compose(WORDS, 2), tmp_path)  # there is no text
    with pytest.raises(ParityError) as caught:
        parity.train(reduced.unsharded(config), tmp_path / "one")
    assert caught.value.exit_code == 3
    assert "text.txt" in capfd.readouterr().err
