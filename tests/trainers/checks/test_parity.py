"""The parity gate: lets through what shards exactly, and can refuse."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainers import check
from trainers.checks import few_steps, parity, reduced
from trainers.checks.parity import differences, tolerance
from trainers.compose import compose
from trainers.data.splits import open_phases
from trainers.errors import ConfigError, ParityError

WORDS = ("experiment=quickstart", "zero.stage=2", "optimizer.weight_decay=0.1")

# An optimizer that takes its own slice for the whole matrix, as others do: it never asks the ranks.
LOCAL_STATISTICS = "import came.reduce; came.reduce.sum_over = lambda buffer, group: None\n"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, Tensor]]]:
    """What one process leaves, and two, and two that do not ask each other."""
    folder = tmp_path_factory.mktemp("parity")
    reduced.write_text(folder)
    small = reduced.sharded(compose(WORDS, 2), folder)
    open_phases(small)
    one = parity._train(reduced.unsharded(small), folder / "one", ("forwards", "backwards"))
    two = parity._train(small, folder / "two", ("forwards",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            few_steps, "START", few_steps.START.replace("main()", LOCAL_STATISTICS + "main()")
        )
        local = parity._train(small, folder / "local", ("forwards",))
    return {"one": one, "two": two, "local": local}


def run(monkeypatch: pytest.MonkeyPatch, worlds, second: str, *options: str) -> int:
    """The exit code of came-check, where two ranks give what `second` has given."""
    monkeypatch.setattr(
        parity, "_train", lambda _, folder, names: worlds["one" if folder.name == "one" else second]
    )
    return check.main([*WORDS, *options])


def test_what_is_sharded_exactly_is_let_through(monkeypatch, worlds, capsys) -> None:
    assert run(monkeypatch, worlds, "two") == 0
    text = capsys.readouterr().out
    assert "## Sharded as unsharded: OK" in text
    assert "bert, masked_lm, came, ZeRO 2, float32" in text
    # Nothing but rounding is in the biases of keys, and nothing else is.
    (line,) = [line for line in text.splitlines() if line.startswith("* left out")]
    assert all("attention.self.key.bias" in name for name in line.partition(": ")[2].split(", "))


def test_local_statistics_are_refused_by_name(monkeypatch, worlds, capsys) -> None:
    assert run(monkeypatch, worlds, "local", "--json") == ParityError.exit_code == 10
    (_, gate) = json.loads(capsys.readouterr().out)["checks"]
    assert not gate["is_green"] and "Do not train with it" in gate["text"]
    first = gate["details"]["differences"][0]
    assert first["name"] in gate["text"] and not first["fits"]
    assert first["value"] > 1000 * first["allowed"]
    # A matrix that a rank holds whole needs nobody; those that are cut, all are seen.
    wrong = {d["name"] for d in gate["details"]["differences"] if not d["fits"]}
    assert any(name.startswith("exp_avg_sq_row/") for name in wrong)
    assert any(name.startswith("param/") for name in wrong)


def state(**changes: float) -> dict[str, Tensor]:
    values = {"before/param/w": 1.0, "after/param/w": 1.01, "after/exp_avg/w": 0.5, "losses": 4.0}
    values |= {name.replace("_w", "/w").replace("_", "/", 1): v for name, v in changes.items()}
    return {name: torch.full((8,), value, dtype=torch.float64) for name, value in values.items()}


def test_a_difference_is_measured_by_the_movement() -> None:
    (worst, *_) = differences(state(), state(), state(after_param_w=1.01 + 2e-6), 1e-5)
    assert worst.name == "param/w" and not worst.fits
    assert worst.value == pytest.approx(2e-4)
    assert worst.allowed == pytest.approx(1e-5 + 2**-23 * 1.01 / 0.01)


def test_what_another_order_of_additions_does_is_allowed_ten_times() -> None:
    rounded = state(losses=4.0 + 4e-5)
    for value, fits in ((4 + 3.9e-4, True), (4 + 4.1e-4, False)):
        found = {d.name: d for d in differences(state(), rounded, state(losses=value), 1e-5)}
        assert found["losses"].fits == fits


def test_missing_tensors_and_numbers_that_are_none_are_refused() -> None:
    fewer = {name: value for name, value in state().items() if "exp_avg" not in name}
    assert [d.name for d in differences(state(), state(), fewer, 1e-5)] == ["after/exp_avg/w"]
    found = differences(state(), state(), state(losses=float("nan")), 1e-5)
    assert found[0].name == "losses" and not found[0].fits


def test_tolerances_are_those_of_the_formats() -> None:
    words = ("experiment=bert_large_32k",)
    assert tolerance(compose(["runtime.dtype=float32"], 2)) == 1e-5
    assert tolerance(compose(words, 2, needs_text=False)) == 2**-8
    assert tolerance(compose(["optimizer.momentum=int8"], 2)) == 2 / 127


def test_the_report_alone_takes_no_time(capsys) -> None:
    assert check.main(["experiment=bert_large_32k", "--no-parity"]) == 0
    text = capsys.readouterr().out
    assert "## Fidelity to the paper: OK" in text and "### Deviations" in text
    assert "Sharded" not in text


def test_wrong_words_are_answered_as_everywhere(capsys) -> None:
    assert check.main(["experiment=quikstart"]) == ConfigError.exit_code
    assert "did you mean 'quickstart'" in capsys.readouterr().err


def test_a_rank_that_cannot_train_says_why(tmp_path: Path, capfd) -> None:
    config = reduced.sharded(compose(WORDS, 2), tmp_path)  # there is no text
    with pytest.raises(ParityError) as caught:
        parity._train(reduced.unsharded(config), tmp_path / "one", ("forwards",))
    assert caught.value.exit_code == 3
    assert "text.txt" in capfd.readouterr().err
