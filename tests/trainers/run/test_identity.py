"""What must stay the same between a checkpoint and the run that goes on from it."""

import json

import pytest

from trainers.compose import compose
from trainers.run.identity import identity, setting
from trainers.run.manifest import changes

TINY = ["experiment=quickstart", "batch.global_size=64", "batch.micro_size=16"]


def differences(*overrides: str) -> tuple[list[str], list[str]]:
    """(refused, told) between the tiny run and one with other settings, after a round trip."""
    old, new = compose(TINY, 2), compose([*TINY, *overrides], 2)
    fingerprints = {"data": "d", "tokenizer": "t"}
    saved = json.loads(json.dumps([identity(old, **fingerprints), setting(old, world_size=2)]))
    return (
        changes(saved[0], identity(new, **fingerprints)),
        changes(saved[1], setting(new, world_size=2)),
    )


def test_the_same_run_has_no_differences() -> None:
    assert differences() == ([], [])


@pytest.mark.parametrize(
    "override",
    [
        "model.layers=3",
        "model.dropout=0.3",
        "optimizer=adamw",
        "optimizer.lr=0.5",
        "optimizer.bias_correction=true",
        "run.seed=5",
        "batch.global_size=128",
        "objective.sequence_length=32",
        "objective.mask_fraction=0.1",
        "train.gradient_clipping=1.0",
        "batch.ramp_from=32 batch.ramp_fraction=0.1",
        "train.phases=[{share:0.5},{share:0.5,sequence_length:32}]",
    ],
)
def test_what_is_learned_may_not_change(override: str) -> None:
    key = override.split()[0].split("=")[0]
    refused, _ = differences(*override.split())
    assert any(line.startswith(key) and line.endswith(" now") for line in refused)


def test_a_key_that_an_older_version_did_not_have_says_what_it_did() -> None:
    """Runs of CAME that began before bias correction go on without."""
    new = identity(compose(TINY, 2), data="d", tokenizer="t")
    assert "optimizer.bias_correction" not in new and "optimizer.clip_threshold" in new


def test_with_phases_the_number_of_steps_says_which_samples_a_step_reads() -> None:
    phases = ["train.phases=[{share:0.5},{share:0.5,sequence_length:32,micro_size:8}]"]
    old = identity(compose([*TINY, *phases], 2), data="d", tokenizer="t")
    longer = identity(compose([*TINY, *phases, "train.steps=99"], 2), data="d", tokenizer="t")
    assert [line.split(":")[0] for line in changes(old, longer)] == ["train.steps"]
    finer = identity(compose([*TINY, phases[0].replace("8", "16")], 2), data="d", tokenizer="t")
    assert changes(old, finer) == []


@pytest.mark.parametrize(
    "override",
    [
        "zero.stage=3",
        "runtime.dtype=bfloat16",
        "batch.micro_size=8",
        "train.steps=9999",
        "schedule=constant",
        "deepspeed.zero_optimization.reduce_bucket_size=1000",
    ],
)
def test_how_fast_and_how_long_may_change_and_is_told(override: str) -> None:
    refused, told = differences(override)
    assert refused == []
    assert any(line.startswith(override.split("=")[0]) for line in told)


@pytest.mark.parametrize(
    "override",
    ["run.dir=elsewhere", "runtime.threads=1", "checkpoint.every=7", "logging=wandb"],
)
def test_the_rest_is_not_compared(override: str) -> None:
    assert differences(override) == ([], [])


def test_other_data_and_another_tokenizer_are_refused() -> None:
    config = compose(TINY, 2)
    old = identity(config, data="a", tokenizer="b")
    new = identity(config, data="c", tokenizer="d")
    assert len(changes(old, new)) == 2
