"""The command: its words, its numbers for machines, its table for people."""

import json

import pytest

from trainers import plan as door
from trainers.compose import compose
from trainers.errors import ConfigError
from trainers.planner.plan import plan_run

HALF = "runtime.dtype=bfloat16"
WORDS = ["experiment=bert_large_32k", "model=bert_mini", "launch.nodes=2"]


def numbers(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert door.main([*WORDS, "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_numbers_for_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = numbers(capsys, "launch.gpus_per_node=4", "optimizer=adamw", "--device", "A100")
    assert (found["world_size"], found["chosen"], found["device"]) == (8, "adamw", "A100")
    adamw, came = found["optimizers"]["adamw"], found["optimizers"]["came"]
    assert adamw["state_bytes"] == 8 * found["num_params"]
    assert adamw["bytes_per_gpu"] == adamw["memory"]["total"] > came["bytes_per_gpu"]
    assert found["work"]["samples"] == 20_000 * 32_768
    seconds = found["work"]["flops"] / (8 * 312e12 * 0.4)
    assert found["work"]["hours"] == pytest.approx(seconds / 3600)


def test_a_node_has_eight_gpus_unless_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert numbers(capsys)["world_size"] == 16
    assert numbers(capsys, "launch.processes=2")["world_size"] == 4


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(WORDS) == 0
    text = capsys.readouterr().out
    assert "16 GPUs on 2 node(s), ZeRO 1, bfloat16, batch 32,768 in micro batches of 16" in text
    assert all(f"│ {name} " in text for name in ("came", "came_int8", "adamw", "lamb", "sm3"))
    assert "optimizer state" in text and "an assumption" in text


def test_time_is_not_known_without_a_peak(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main([*WORDS, "runtime.dtype=float32"]) == 0
    assert "time: not known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--mfu=1.5", "--mfu 1.5"),
        ("launch.nodes=3", "not divisible by"),
        ("--jsn", "did you mean '--json'"),
        ("launch.nodes=0", "launch.nodes must be 1 or more"),
    ],
)
def test_wrong_words(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main([*WORDS, word]) == 2
    assert said in capsys.readouterr().err


def test_came_train_is_not_planned_over_machines() -> None:
    with pytest.raises(ConfigError, match="launch.nodes=2, but launch=local is this machine"):
        compose(["launch.nodes=2"], 2)


def test_stages_share_out_more_and_more() -> None:
    """By hand, for P parameters in float32 on 4 ranks; padding is a few numbers."""
    found = {}
    for stage in range(4):
        words = ["model=bert_mini", f"zero.stage={stage}", "launch.processes=4"]
        plan = plan_run(compose(words, planned=True), "H100", 0.4)
        row, p = plan.rows["adamw"], plan.num_params
        found[stage] = (row.memory.parameters, row.memory.master, row.memory.gradients)
        state = 8 * p if stage == 0 else 2 * p
        assert row.memory.state == pytest.approx(state, rel=1e-4)
        assert row.state_bytes == 8 * p
        once = 0.75 * 4 * p  # (W - 1) / W of the gradients
        sent = row.communication
        assert sent.gradients == pytest.approx(once if stage == 3 else 2 * once, rel=1e-4)
        assert sent.parameters == pytest.approx([0, once, once, 2 * once][stage], rel=1e-4)
        assert sent.optimizer == 0
        assert (plan.rows["came"].communication.optimizer > 0) == (stage > 0)
    small = found[3][0] - p
    assert found[0] == (4 * p, 0, 4 * p)
    assert found[1] == (4 * p, pytest.approx(p, rel=1e-4), 4 * p)
    assert found[2][:2] == pytest.approx((4 * p, p), rel=1e-4)
    assert p < found[2][2] <= p + 2 * 4 * plan.vocab_size * 256  # cut at both ends, at most
    half = compose([*words[:1], "zero.stage=2", "launch.processes=4", HALF], planned=True)
    assert plan_run(half, "H100", 0.4).rows["adamw"].memory.gradients == pytest.approx(p, rel=1e-4)
    assert 0 < small < 4 * p  # what stays whole on every rank
    assert found[3][1:] == pytest.approx((p, p), rel=1e-4)


def test_offload_moves_the_state_to_the_host() -> None:
    words = ["model=bert_mini", "zero.stage=2", "launch.processes=4", "zero.offload_optimizer=true"]
    row = plan_run(compose(words, planned=True), "H100", 0.4).rows["adamw"].memory
    assert (row.state, row.master, row.gradients) == (0, 0, 0)
    assert row.host > 0


@pytest.mark.parametrize("columns", ["40", None])
def test_no_digit_is_left_out_where_there_is_little_room(
    columns: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe was taken to be 80 columns wide, and "0.006" became "0.0" with dots."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    assert door.main([*WORDS, "zero.offload_optimizer=true"]) == 0
    text = capsys.readouterr().out
    assert "\u2026" not in text
    table = text.partition("per GPU")[2]
    if columns:
        assert max(map(len, table.splitlines())) <= 40
    else:
        assert "\u2502 adafactor_no_momentum \u2502" in table


FOUND = ("runtime.micro_batch=auto", "batch.micro_size=0")


def test_what_depends_on_the_micro_batch_is_not_known_before_it_is_found(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A micro batch of all 2,048 sequences of a rank was counted, hundreds of GB for BERT-Large."""
    found, given = numbers(capsys, *FOUND, "zero.stage=3"), numbers(capsys, "zero.stage=3")
    assert found["batch"] == given["batch"] | {"micro_size": None}
    came, known = found["optimizers"]["came"], given["optimizers"]["came"]
    unknown = {"activations": None, "total": None}
    assert came["memory"] == known["memory"] | unknown and came["bytes_per_gpu"] is None
    sent = {"gradients": None, "parameters": None, "total": None}
    assert came["communication_bytes_per_step"] == known["communication_bytes_per_step"] | sent
    # At stage 1 gradients are summed once a step, however many micro batches there are.
    once, same = numbers(capsys, *FOUND)["optimizers"], numbers(capsys)["optimizers"]
    key = "communication_bytes_per_step"
    assert once["came"][key] == same["came"][key]


@pytest.mark.parametrize(("stage", "sent"), [(1, ""), (2, ", and what is sent in a step")])
def test_people_are_told_what_is_not_known(
    stage: int, sent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door.main([*WORDS, *FOUND, f"zero.stage={stage}"]) == 0
    text = capsys.readouterr().out
    assert "batch 32,768 in micro batches as large as fit\n" in text
    assert f"found at the start: activations{sent} are not known before" in text
    assert text.count("not known") == (3 if stage == 1 else 5)
