"""A plan of runs: what comes next, what a stopped plan goes on with, and what is said of it.

The plans themselves are tested in test_reproduction_plan.py.
"""

import dataclasses
import json
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest

from scripts import reproduce
from scripts.reproduction import drive, outcome
from scripts.reproduction.keep import keep
from scripts.reproduction.order import Run, best_rate, missing_rates, next_runs
from scripts.reproduction.plan import Contestant, Plan, Task
from scripts.reproduction.tables import tables
from trainers.compose import compose

LOSS = Task("t", "A task", "eval/loss", (), (Contestant("came", (), 1.0),))
PLAN = Plan(jobs=2, seeds=3, factor=2.0, max_rates=5, words=(), tasks=(LOSS,))


def run(rate: int, seed: int = 0) -> Run:
    return Run("t", "came", rate, seed)


def run_all(reached) -> dict[Run, float | None]:
    """All runs of the plan, in its order, each reaching what `reached` says of its rate."""
    results: dict[Run, float | None] = {}
    while waiting := list(next_runs(PLAN, results)):
        results[waiting[0]] = reached(waiting[0].rate)
        assert len(results) < 20
    return results


def test_the_best_inside_gets_the_seeds():
    results = run_all(lambda rate: abs(rate))
    assert list(results) == [run(0), run(-1), run(1), run(0, 1), run(0, 2)]


def test_a_best_at_the_edge_is_followed_as_far_as_allowed():
    assert list(run_all(lambda rate: -rate)) == [
        *(run(rate) for rate in (0, -1, 1, 2, 3)),
        *(run(3, seed) for seed in (1, 2)),
    ]


def test_a_fixed_sweep_is_run_whole_and_no_further():
    task = Task("t", "", "eval/loss", (), LOSS.contestants, rates=(-4, 0, 4))
    assert missing_rates(PLAN, task, {0: 1.0}) == [-4, 4]
    assert missing_rates(PLAN, task, {-4: 1.0, 0: 2.0, 4: 3.0}) == []


def test_what_diverges_is_worst_and_the_sweep_goes_down():
    def reached(rate: int) -> float | None:
        return None if rate > -2 else -float(rate)

    results = run_all(reached)
    assert [key.rate for key in results if key.seed == 0] == [0, -1, 1, -2, -3]
    assert {key.rate for key in results if key.seed} == {-2}
    assert not [key for key in run_all(lambda rate: None) if key.seed], "nothing works: no seeds"


def test_more_is_better_where_the_metric_says_so():
    task = Task("t", "", "max:eval/mlm_accuracy", (), LOSS.contestants)
    assert best_rate(task, {-1: 0.2, 0: 0.3, 1: None}) == 0
    assert best_rate(LOSS, {-1: 0.2, 0: 0.3, 1: None}) == -1
    assert missing_rates(PLAN, LOSS, {-1: 0.2, 0: 0.3, 1: None}) == [-2]


@pytest.mark.parametrize(
    "words", [["cpu", "train.steps=20", "--jobs", "1"], ["cpu", "--jobs", "1", "train.steps=20"]]
)
def test_words_given_are_stronger_than_the_plan_but_for_what_is_compared(words, monkeypatch):
    seen = []
    monkeypatch.setattr(reproduce, "drive", lambda plan, out, minutes: seen.append(plan) or True)
    assert reproduce.main([*words, "optimizer.lr=7"]) == 0
    config = compose(drive.words_of(seen[0], Run("gpt2", "came", 0, 1), Path("runs/x")), 1)
    assert (config.train.steps, config.optimizer.lr, config.run.seed) == (20, 3e-4, 1)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_so_that_the_runs_can_save(signum, monkeypatch, tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what runs in the background
    saved = []

    def drive_until_stopped(plan: Plan, out: Path, minutes: float) -> bool:
        try:
            os.kill(os.getpid(), signum)
            time.sleep(10)
            return True
        finally:
            saved.append(out)

    monkeypatch.setattr(reproduce, "drive", drive_until_stopped)
    try:
        assert reproduce.main(["cpu", "--out", str(tmp_path)]) == 75
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert saved == [tmp_path]


TRAINER = textwrap.dedent("""\
    import json, sys, time
    from pathlib import Path
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    folder, rate = Path(words["run.dir"]), float(words["optimizer.lr"])
    if rate > 1.5:
        sys.exit(5)  # diverged
    if rate == 1.0 and words["run.seed"] == "2" and not (folder / "again").exists():
        (folder / "again").touch()
        time.sleep(60)
    rows = [{"step": 1, "eval/loss": 9.0}, {"step": 2, "eval/loss": 2 - rate}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
    (folder / "ledger.json").write_text(json.dumps({"state_bytes": 7, "params": [1, 2]}))
    """)


def test_a_plan_is_driven_stopped_and_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "train.py").write_text(TRAINER)
    monkeypatch.setattr(drive, "TRAIN", (sys.executable, str(tmp_path / "train.py")))
    monkeypatch.setattr(drive, "POLL", 0.02)
    out = tmp_path / "out"
    assert not drive.drive(PLAN, out, minutes=2 / 60), "one run takes longer than that"
    done = drive.read_results(PLAN, out)
    assert done == {run(-1): 1.5, run(0): 1.0, run(1): None, run(0, 1): 1.0}
    before = capsys.readouterr()
    assert "rate +1  seed 0  diverged" in before.out and "ended with -15" in before.err

    assert drive.drive(PLAN, out)
    assert drive.read_results(PLAN, out) == {**done, run(0, 2): 1.0}
    assert capsys.readouterr().out.count("start") == 1, "what is done is not done again"
    table = tables(PLAN, drive.read_results(PLAN, out), {})
    assert "| came | 1 | 3 | 1.0000 | 0.0000 | 1.0000 to 1.0000 |" in table
    assert "0.5: 1.5000, 1: 1.0000, 2: diverged" in table


def test_a_failure_is_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(drive, "TRAIN", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(RuntimeError, match=r"t  came  rate .* ended with 3: read .*run.log"):
        drive.drive(PLAN, tmp_path)
    assert drive.read_results(PLAN, tmp_path) == {}


def finished(plan: Plan, out: Path, **told) -> Path:
    """The folder of a run of the plan that is over; its outcome file has `told`."""
    folder = drive.folder_of(out, run(0))
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "eval/loss": 2.5}\n')
    outcome.write(folder, 0, drive.words_of(plan, run(0), out))
    if told:
        (folder / "outcome.json").write_text(json.dumps(told))
    return folder


def with_words(*words: str, plan: Plan = PLAN) -> Plan:
    return dataclasses.replace(plan, overrides=words)


def test_a_run_of_other_words_is_no_run_of_the_plan(tmp_path):
    """A try with train.steps=10 was counted as done, and stood in the table with the rest."""
    folder = finished(with_words("train.steps=10", "eval.every=5"), tmp_path)
    with pytest.raises(ValueError) as refused:
        drive.drive(with_words("train.steps=800"), tmp_path)
    assert str(refused.value).startswith(
        f"{folder} was run with train.steps=10 eval.every=5, and the plan and words given now say "
        "train.steps=800 no eval.every: give the words of then, name another folder with --out"
    )
    with pytest.raises(ValueError, match="with no data.seed, .* say data.seed=1: give"):
        drive.read_results(with_words("train.steps=10", "eval.every=5", "data.seed=1"), tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("lr*")) == ["lr+0_seed0"], "none started"


def test_a_run_that_was_stopped_does_not_go_on_with_other_words(tmp_path, monkeypatch):
    """It would go on from the checkpoint of a shorter schedule."""
    monkeypatch.setattr(drive, "TRAIN", (sys.executable, "-c", "raise SystemExit(3)"))
    monkeypatch.setattr(drive, "POLL", 0.02)
    for _ in range(2):  # the same words may
        with pytest.raises(RuntimeError, match="ended with 3"):
            drive.drive(with_words("train.steps=10"), tmp_path)
    with pytest.raises(ValueError, match=r"run with train.steps=10, .* say no train.steps:"):
        drive.drive(PLAN, tmp_path)


def test_an_edited_plan_refuses_the_runs_of_before(tmp_path):
    finished(PLAN, tmp_path)
    task = dataclasses.replace(LOSS, contestants=(Contestant("came", (), 2.0),))
    with pytest.raises(ValueError, match=r"run with optimizer.lr=1, .* say optimizer.lr=2:"):
        drive.read_results(dataclasses.replace(PLAN, tasks=(task,)), tmp_path)


def test_what_only_makes_a_run_faster_may_differ(tmp_path):
    plan = with_words("train.steps=9", "launch.processes=1", "train.steps=10")
    finished(plan, tmp_path)
    faster = with_words("train.steps=10", "runtime.threads=4", "batch.micro_size=8")
    for same in (plan, dataclasses.replace(faster, jobs=7, seeds=9)):
        assert drive.read_results(same, tmp_path) == {run(0): 2.5}


def test_runs_of_versions_that_kept_no_words_are_read(tmp_path):
    finished(PLAN, tmp_path, exit_code=0)
    assert drive.read_results(with_words("train.steps=10"), tmp_path) == {run(0): 2.5}


def test_the_command_refuses_in_words(tmp_path, capsys):
    folder = drive.folder_of(tmp_path, Run("gpt2", "came", 0, 0))
    folder.mkdir(parents=True)
    outcome.write(folder, 5, ["train.steps=10"])
    assert reproduce.main(["cpu", "--out", str(tmp_path), "--table"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {folder} was run with train.steps=10 ")


def test_words_are_kept_without_folders_and_secrets(tmp_path):
    data = f"data.path=[/scratch/somebody/a,{Path.home()}/b.txt,~/d/e,relative/c]"
    words = (data, "data.cache_dir='/x y/z'", "logging.api_key=abcdefgh")
    plan, out, kept = with_words(*words), tmp_path / "out", tmp_path / "kept"
    finished(plan, out)
    assert keep(out, kept) == 1
    told = json.loads((drive.folder_of(kept, run(0)) / "outcome.json").read_text())
    assert told["words"] == [
        *("data.path=[a,b.txt,e,relative/c]", "data.cache_dir='z'", "logging.api_key=***"),
        *("optimizer.lr=1", "run.seed=0"),
    ]
    assert drive.read_results(plan, kept) == {run(0): 2.5}
    elsewhere = with_words("data.path=[/elsewhere/a]", *words[1:])
    for folder in (out, kept):
        with pytest.raises(ValueError, match="say data.path="):
            drive.read_results(elsewhere, folder)


def test_what_is_kept_has_no_weights(tmp_path, capsys):
    out, kept = tmp_path / "out", tmp_path / "kept"
    folder = out / "bert_small_batch/came/lr+0_seed0"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "outcome.json").write_text('{"exit_code": 0}')
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "eval/mlm_accuracy": 0.25, "eval/mlm_loss": 5}\n'
    )
    (folder / "ledger.json").write_text(json.dumps({"state_bytes": 7, "params": [1, 2]}))
    (folder / "config.yaml").write_text(
        f"train: {{steps: 1}}\ncache_dir: {Path.home()}/.cache/came\n"
    )
    starts = [{"host": "a", "platform": "b", "commit": "c"}]
    (folder / "provenance.json").write_text(json.dumps({"starts": starts}))
    assert reproduce.main(["cpu", "--out", str(out), "--keep", str(kept)]) == 0
    assert (kept / "bert_small_batch/came/lr+0_seed0/config.yaml").read_text() == (
        "train: {steps: 1}\ncache_dir: ~/.cache/came\n"  # nothing that tells of a machine
    )
    told = json.loads((kept / "bert_small_batch/came/lr+0_seed0/provenance.json").read_text())
    assert told == {"starts": [{"commit": "c"}]}
    assert "1 finished runs kept" in capsys.readouterr().out
    names = sorted(path.name for path in kept.rglob("*") if path.is_file())
    assert names == [
        *("config.yaml", "ledger.json", "metrics.jsonl", "outcome.json", "provenance.json")
    ]
    assert reproduce.main(["cpu", "--out", str(kept), "--table"]) == 0
    assert "0.0003: 25.00%" in capsys.readouterr().out
