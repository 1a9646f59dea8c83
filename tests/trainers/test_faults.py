"""Faults on demand: refused outside tests, nothing when off, and only where they were asked for."""

import pytest

from trainers import faults
from trainers.errors import ConfigError
from trainers.faults import ALLOWED, POINTS, VARIABLE, Fault, parse


def plan(monkeypatch: pytest.MonkeyPatch, text: str, rank: str = "1") -> None:
    monkeypatch.setenv(VARIABLE, text)
    monkeypatch.setenv(ALLOWED, "1")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(faults, "_plan", faults._Plan())


def test_what_was_asked_for_is_read() -> None:
    text = "kill@backward:rank1:step5,sleep=2.5@write step-*/manifest.json,times=nan@loss:step3"
    first, second, third = parse({VARIABLE: text, ALLOWED: "1"})
    assert first == Fault("kill", 0.0, "backward", 1, 5)
    assert second == Fault("sleep", 2.5, "write step-*/manifest.json", None, None)
    assert (third.mode, third.step, third.value != third.value) == ("times", 3, True)


@pytest.mark.parametrize(
    "text", ["boom@step", "kill@nowhere", "kill", "sleep=x@step", "kill@step:step5:rank1", "@step"]
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="CAME_FAULT"):
        parse({VARIABLE: text, ALLOWED: "1"})


@pytest.mark.parametrize("allowed", [{}, {ALLOWED: "0"}])
def test_outside_tests_it_is_refused(allowed: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="unset it"):
        parse({VARIABLE: "kill@step", **allowed})
    assert parse({}) == parse(allowed) == ()


def test_nothing_is_looked_up_when_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    plan = faults._Plan()
    monkeypatch.setattr(faults, "_plan", plan)
    monkeypatch.setattr(plan, "now", None)  # would be called
    for point in POINTS:
        faults.fault(point, 1)
        assert faults.factor(point, 1) == 1.0


def test_it_happens_at_its_point_rank_and_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plan(monkeypatch, "exception@optimizer:rank1:step2,times=1e4@loss:step2")
    for step in (1, 3):
        faults.fault("optimizer", step)
        assert faults.factor("loss", step) == 1.0
    faults.fault("backward", 2)
    assert faults.factor("loss", 2) == 1e4
    with pytest.raises(RuntimeError, match="injected at optimizer"):
        faults.fault("optimizer", 2)
    plan(monkeypatch, "exception@optimizer:rank1:step2", rank="0")
    faults.fault("optimizer", 2)


def test_a_point_without_a_step_is_in_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plan(monkeypatch, "enospc@sync step-*/rank-00001*:step5,memory@write */latest")
    faults.fault("step", 4)
    faults.fault("sync step-4.tmp/rank-00001.safetensors")
    faults.fault("step", 5)
    faults.fault("sync step-5.tmp/rank-00000.safetensors")
    with pytest.raises(OSError, match="No space left"):
        faults.fault("sync step-5.tmp/rank-00001.safetensors")
    with pytest.raises(MemoryError):
        faults.fault("write checkpoints/latest")


@pytest.mark.parametrize("point", ["write folder/a.txt", "sync folder/a.txt", "sync */folder"])
def test_files_are_points(monkeypatch: pytest.MonkeyPatch, tmp_path, point: str) -> None:
    from trainers import durable

    path = tmp_path / "folder" / "a.txt"
    path.parent.mkdir()
    path.write_text("old")
    plan(monkeypatch, f"enospc@{point}")
    with pytest.raises(OSError, match="No space left"):
        durable.write_text(path, "new")
        durable.sync(path)
    assert path.read_text() == ("old" if point.startswith("write") else "new")
