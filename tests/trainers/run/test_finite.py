"""What is no number on one rank changes nothing on any."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.ranks import run_ranks
from tests.trainers.run import finite_checks
from trainers.errors import NonFiniteError
from trainers.run.finite import Skips, Spikes, contagious


def test_a_bad_step_on_one_rank_is_none_on_any(tmp_path: Path) -> None:
    run_ranks(finite_checks.check_all, 2, tmp_path)


@pytest.mark.parametrize(
    ("value", "factor"),
    [(2.5, 1.0), (math.inf, math.nan), (-math.inf, math.nan), (math.nan, math.nan)],
)
def test_a_loss_that_is_no_number_has_no_gradient(value: float, factor: float) -> None:
    share = torch.tensor(value, requires_grad=True)
    result = contagious(share)
    result.backward()
    assert (
        torch.equal(share.grad, torch.tensor(factor)) or math.isnan(factor) and share.grad.isnan()
    )
    assert not math.isfinite(value) or result.item() == value


def engine(skipped: int = 0) -> SimpleNamespace:
    return SimpleNamespace(skipped_steps=skipped, module=nn.Linear(2, 2))


def note(skips: Skips, fake: SimpleNamespace, step: int, loss: float) -> bool:
    return skips.note(fake, step, range(24 * step - 24, 24 * step), torch.tensor(loss))


def bad_step(limit: int, folder: Path) -> tuple[Skips, SimpleNamespace]:
    """A run, and its engine after the first step that it has skipped."""
    fake = engine()
    skips = Skips(limit, folder, fake)
    fake.skipped_steps += 1
    return skips, fake


def test_what_earlier_starts_have_skipped_counts_in_the_sum_alone(tmp_path: Path) -> None:
    fake = engine(7)
    skips = Skips(1, tmp_path, fake)
    assert not note(skips, fake, 30, 1.0)
    fake.skipped_steps += 1
    assert note(skips, fake, 31, math.nan), "one in a row"
    assert skips.total == 8


def test_as_many_as_allowed_in_a_row_are_passed_over(tmp_path: Path, caplog) -> None:
    fake = engine()
    skips = Skips(2, tmp_path, fake)
    (tmp_path / "step-00000004").mkdir()
    assert not note(skips, fake, 4, 1.0)
    for step in (5, 6):
        fake.skipped_steps += 1
        with caplog.at_level(logging.WARNING):
            assert note(skips, fake, step, math.nan)
    assert "the loss of rank 0 is not finite at step 5, samples 96 to 119" in caplog.text
    assert not note(skips, fake, 7, 1.0)
    for step in (8, 9):
        fake.skipped_steps += 1
        assert note(skips, fake, step, 1.0)
    fake.skipped_steps += 1
    with pytest.raises(NonFiniteError) as error:
        note(skips, fake, 10, 1.0)
    for words in (
        *("the gradients are not finite at step 10, samples 216 to 239", "last good step is 7"),
        *("newest checkpoint step-00000004", "train.max_skipped_steps (now 2)"),
    ):
        assert words in str(error.value)
    assert skips.total == 5 and error.value.exit_code == 5 and error.value.everywhere


def test_at_once_where_none_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="newest checkpoint none"):
        note(*bad_step(0, tmp_path), 1, math.nan)


def test_a_bad_batch_in_the_last_step_leaves_good_parameters(tmp_path: Path, caplog) -> None:
    skips, fake = bad_step(10, tmp_path)
    assert note(skips, fake, 20, math.nan)
    skips.end(fake, 20, 3.5)
    assert "the run ends with the parameters of step 19, the last good one" in caplog.text


@pytest.mark.parametrize("heldout_loss", [math.nan, math.inf])
def test_a_run_does_not_end_well_with_parameters_that_know_nothing(
    heldout_loss: float, tmp_path: Path
) -> None:
    """The last update was the bad one: no batch has a loss that is a number."""
    skips, fake = bad_step(10, tmp_path)
    assert note(skips, fake, 20, math.nan)
    with pytest.raises(NonFiniteError, match="at step 20, samples 456.* last good step is 19"):
        skips.end(fake, 20, heldout_loss)


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    skips, fake = bad_step(0, tmp_path)
    fake.module.weight.data[0, 0] = math.inf
    with pytest.raises(NonFiniteError, match="not finite are weight:"):
        note(skips, fake, 1, math.nan)


def test_a_loss_that_jumps_is_counted_and_stops_nothing() -> None:
    spikes = Spikes()
    losses = [5 - 0.01 * step + 0.05 * (-1) ** step for step in range(100)]
    for loss in [*losses[:50], math.nan, 400.0, 390.0, *losses[50:]]:
        spikes.note(loss)
    assert spikes.total == 2


def test_the_first_losses_are_no_spikes() -> None:
    spikes = Spikes()
    for loss in (9.0, 8.0, 7.0, 9.0, 12.0):
        spikes.note(loss)
    assert spikes.total == 0
