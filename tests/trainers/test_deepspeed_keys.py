"""The literal lists of DeepSpeed's keys against the installed DeepSpeed."""

import importlib

import pytest

from trainers.deepspeed_keys import (
    CHECKPOINTING,
    GUARDS,
    OFFERED,
    OURS,
    TOP_LEVEL,
    ZERO,
    problems_of_block,
)


class Recorder(dict):
    """A DeepSpeed config that notes which keys it is asked for."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked = set()

    def __copy__(self):
        return self

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def keys(self):
        return self


@pytest.fixture(scope="module")
def deepspeed_config():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        return importlib.import_module("deepspeed.runtime.config")


def test_top_level_keys_are_those_deepspeed_asks_for(deepspeed_config):
    recorder = Recorder(train_batch_size=1)
    deepspeed_config.DeepSpeedConfig(recorder)
    refused = deepspeed_config._REMOVED_TOP_LEVEL_CONFIG_KEYS.keys()
    assert recorder.asked - refused == TOP_LEVEL


def test_zero_keys_are_the_fields_of_deepspeeds_model(deepspeed_config):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    aliases = {field.alias for field in fields.values() if field.alias}
    assert fields.keys() | aliases == ZERO


def test_keys_of_ours_are_keys_of_deepspeed():
    assert OFFERED <= TOP_LEVEL
    for key in (*OURS, *GUARDS):
        section, _, name = key.rpartition(".")
        assert name in (ZERO if section else TOP_LEVEL), key


def test_sections_hold_what_deepspeed_reads(deepspeed_config):
    from deepspeed.runtime.activation_checkpointing import config as checkpointing

    recorder = Recorder()
    checkpointing.DeepSpeedActivationCheckpointingConfig({"activation_checkpointing": recorder})
    assert recorder.asked == CHECKPOINTING


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (
            {"activation_checkpointing": {"cpu_checkpointin": True}},
            "did you mean 'deepspeed.activation_checkpointing.cpu_checkpointing'",
        ),
        ({"activation_checkpointing": True}, "must be a mapping"),
        ({"wall_clock_breakdown": True}, "not offered"),
        ({"zero_optimization": {"zenflow": {}}}, "written by this program"),
        ({"zero_optimization": {"compute_grad_norm": False}}, "gradients that are no numbers"),
        ({"tensor_parallel": {"autotp_size": 2}}, "not offered"),
        ({"gradient_allreduce_op": "sum"}, "not offered"),
    ],
)
def test_what_would_be_swallowed_or_is_not_tested_is_refused(block, words):
    (problem,) = problems_of_block(block)
    assert words in problem


def test_a_good_block_has_no_problems():
    block = {"zero_optimization": {"reduce_bucket_size": 1}, "log_level": "info"}
    assert list(problems_of_block(block)) == []
