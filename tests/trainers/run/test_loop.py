"""Whole runs: what is learned depends neither on the number of processes nor on being killed."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import (
    REPOSITORY,
    STARTING,
    Started,
    commits,
    learned,
    losses,
    nobody_is_left,
)
from tests.trainers.data.corpus import write_text

__all__ = ["nobody_is_left"]  # of each test here

TINY = (
    *("data=text", "data.vocab_size=300", "objective.sequence_length=48"),
    *("objective.max_predictions=9", "model.layers=2", "model.hidden=32", "model.heads=2"),
    *("model.intermediate=64", "model.max_positions=64", "model.dropout=0.0"),
    *("batch.global_size=24", "train.log_every=1", "eval.samples=40", "runtime.threads=1"),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_text(folder / "text.txt", num_documents=300)
    return folder


def tiny(corpus: Path, run_dir: Path, *words: str) -> Started:
    return Started(corpus, run_dir, *words, settings=TINY)


def train(corpus: Path, run_dir: Path, *words: str) -> None:
    ended = tiny(corpus, run_dir, *words).end()
    assert ended.code == 0, ended.output


def telemetry(run_dir: Path, step: int) -> dict[str, float]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    (line,) = [line for line in lines if line["step"] == step]
    found = {key: value for key, value in line.items() if key.startswith("optimizer/")}
    return {key: float("nan") if value is None else value for key, value in found.items()}


def test_what_is_learned_does_not_depend_on_how_it_is_sharded(corpus: Path, tmp_path: Path) -> None:
    ways = {
        "alone": ("launch.processes=1", "batch.micro_size=24"),
        "zero1": ("launch.processes=2", "zero.stage=1", "batch.micro_size=3"),  # 4 accumulations
        "zero2": ("launch.processes=2", "zero.stage=2", "batch.micro_size=12"),
        "zero3": ("launch.processes=4", "zero.stage=3", "batch.micro_size=6"),
    }
    found = {}
    for name, words in ways.items():
        train(corpus, tmp_path / name, "train.steps=10", "logging.telemetry=true", *words)
        found[name] = losses(tmp_path / name)
    assert list(found["alone"]) == list(range(1, 11))
    for name in ways:
        for step, loss in found["alone"].items():
            assert abs(found[name][step] - loss) < 1e-4, f"{name}, step {step}"
        for step in (1, 10):
            one, other = telemetry(tmp_path / "alone", step), telemetry(tmp_path / name, step)
            assert one.keys() == other.keys() and len(one) == 8  # four numbers of two groups
            for key, value in one.items():
                # Of vectors some, the biases of keys, have no gradient but rounding.
                bound = 1e-3 if key.endswith("/0") else 0.1
                assert other[key] == pytest.approx(value, rel=bound, nan_ok=True), (name, key)
    ledger = json.loads((tmp_path / "zero3" / "ledger.json").read_text())
    assert ledger["world_size"] == 4
    rules = {row["name"]: row["rule"] for row in ledger["params"]}
    assert rules["model.bert.embeddings.word_embeddings.weight"] == "factored"
    assert rules["model.cls.predictions.bias"] == "vector"


def slow(values: Any) -> Any:
    """The same once more for others: minutes that `make test-slow` has."""
    return pytest.param(values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "words",
    [
        slow(("zero.stage=1", "batch.micro_size=6", "model.dropout=0.1")),
        ("zero.stage=3", "runtime.dtype=bfloat16"),
        ("zero.stage=1", "runtime.dtype=bfloat16", "batch.micro_size=4"),
        slow(("zero.stage=2", "optimizer=adamw")),
    ],
    ids=["zero1-dropout", "zero3-bf16", "zero1-bf16", "zero2-adamw"],
)
def test_killed_and_started_again_is_as_if_nothing_had_happened(
    corpus: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    settings = ("train.steps=14", "checkpoint.every=5", "launch.processes=2", *words)
    train(corpus, tmp_path / "unbroken", *settings)

    started = tiny(corpus, tmp_path / "broken", *settings)
    started.wait_for(tmp_path / "broken" / "checkpoints" / "step-00000005")
    started.signal(signal.SIGKILL)  # the ranks die with their launcher
    ended, saved = started.end(), commits(tmp_path / "broken")
    assert saved in ([5], [10, 5])
    ended.must(code=-signal.SIGKILL, within=10, words=[], commits=saved)
    before = losses(tmp_path / "broken")
    assert max(before) < 14
    ended = tiny(corpus, tmp_path / "broken", *settings).end()
    words = [f"goes on from step {saved[0]}"]
    ended.must(code=0, within=STARTING, words=words, commits=[14, 10])
    assert learned(tmp_path / "broken") == learned(tmp_path / "unbroken")
    assert before.items() <= losses(tmp_path / "unbroken").items()


def test_phases_and_a_growing_batch(corpus: Path, tmp_path: Path) -> None:
    """The same on two processes, which accumulate 2, 4 and 1 times, and after a resume."""
    phases = "[{share:0.6},{share:0.4,sequence_length:64,global_size:12,micro_size:6}]"
    words = (
        *("train.steps=10", f"train.phases={phases}", "batch.ramp_from=12"),
        *("batch.ramp_fraction=0.3", "checkpoint.every=2", "checkpoint.keep=9"),
    )
    train(corpus, tmp_path / "alone", "launch.processes=1", "batch.micro_size=12", *words)
    train(corpus, tmp_path / "two", "launch.processes=2", "batch.micro_size=3", *words)
    wanted = losses(tmp_path / "alone")
    assert losses(tmp_path / "two") == pytest.approx(wanted, abs=1e-4)

    shutil.copytree(tmp_path / "two", tmp_path / "resumed")
    for step in ("04", "06", "08", "10"):  # go on in the first phase, one step before it has grown
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / f"step-000000{step}")
    train(corpus, tmp_path / "resumed", "launch.processes=2", "batch.micro_size=3", *words)
    assert losses(tmp_path / "resumed") == losses(tmp_path / "two")
    rows = [
        json.loads(x) for x in (tmp_path / "resumed" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["samples"] for row in rows] == [12, 24, 36, 60, 84, 108, 120, 132, 144, 156]
    straight = [
        json.loads(x) for x in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in straight]
    assert all(0 <= row["train/data_wait"] <= 1 for row in rows)


@pytest.mark.parametrize("optimizer", ["came", slow("adafactor"), slow("lamb"), slow("sm3")])
def test_a_run_goes_on_in_another_world(corpus: Path, tmp_path: Path, optimizer: str) -> None:
    words = (f"optimizer={optimizer}", "train.steps=4", "checkpoint.every=2")
    train(corpus, tmp_path / "alone", "launch.processes=1", *words)
    shutil.copytree(tmp_path / "alone", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000004")
    train(corpus, tmp_path / "resumed", "launch.processes=2", "zero.stage=3", *words)
    found, wanted = losses(tmp_path / "resumed"), losses(tmp_path / "alone")
    assert list(wanted) == [1, 2, 3, 4] and len(set(wanted.values())) == 4
    assert found == pytest.approx(wanted, abs=1e-4)
    ledger = json.loads((tmp_path / "resumed" / "ledger.json").read_text())
    assert ledger["world_size"] == 2


def test_a_finished_run_is_left_as_it_is(corpus: Path, tmp_path: Path) -> None:
    """Nothing is written or removed; only the lock names another owner."""
    run_dir, words = tmp_path / "run", ("train.steps=3", "launch.processes=1")
    train(corpus, run_dir, *words)

    def files() -> dict[Path, int]:
        found = [path for path in run_dir.rglob("*") if path.name != ".lock" and path.is_file()]
        return {path: path.stat().st_mtime_ns for path in found}

    before = files()
    ended = tiny(corpus, run_dir, *words).end()
    ended.must(code=0, within=STARTING, words=["already complete: 3 steps in"], commits=[3])
    assert files() == before
    assert list(losses(run_dir)) == [1, 2, 3]


def test_nothing_is_compiled_that_a_killed_run_could_leave_locked(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed while DeepSpeed loaded its extension made every later run wait for a lock."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    train(corpus, tmp_path / "run", "train.steps=2", "launch.processes=2")
    assert list(tmp_path.glob("extensions/**/*")) == []


def test_a_rank_that_hangs_is_not_waited_for_longer_than_asked(
    corpus: Path, tmp_path: Path
) -> None:
    """DeepSpeed's own process groups waited for torch's 30 minutes whatever was configured."""
    words = ("train.steps=100000", "launch.processes=2", "runtime.timeout_seconds=4")
    started = tiny(corpus, tmp_path / "run", *words, "checkpoint.every=0")
    started.wait_for("step ")
    started.signal(signal.SIGSTOP, started.ranks()[1:])
    ended = started.end()
    said = ["rank 1 did not answer: rank 0 waited in "]
    ended.must(code=7, within=4 + 5, words=said, commits=[])


def test_a_run_that_died_before_its_report_gets_one(corpus: Path, tmp_path: Path) -> None:
    train(corpus, tmp_path, "train.steps=2", "launch.processes=1")
    (tmp_path / "report" / "summary.md").unlink()
    train(corpus, tmp_path, "train.steps=2", "launch.processes=1")
    assert (tmp_path / "report" / "summary.md").exists()


def test_nothing_is_saved_after_the_loss_is_no_number(corpus: Path, tmp_path: Path) -> None:
    """Checkpoints of a run gone wrong replaced the good ones, and it could never go on."""
    words = (
        "optimizer.lr=1e30",
        "checkpoint.every=2",
        "train.steps=50",
        "train.max_skipped_steps=3",
    )
    said = [
        *("4. step in a row without an update", '"step": 5,'),
        "the last good step is 1, the newest checkpoint none",
    ]
    ended = tiny(corpus, tmp_path / "run", *words).end()
    ended.must(code=5, within=STARTING, words=said, commits=[])


def test_what_deepspeed_refuses_is_a_configuration_error(corpus: Path, tmp_path: Path) -> None:
    word = "deepspeed.zero_optimization.reduce_bucket_size=abc"
    ended = tiny(corpus, tmp_path / "run", word).end()
    ended.must(code=2, within=STARTING, words=["reduce_bucket_size"], commits=[])
    assert "Traceback" not in ended.output and ended.output.count("error: ") == 1


def test_fewer_samples_than_one_batch(corpus: Path, tmp_path: Path) -> None:
    ended = tiny(corpus, tmp_path / "run", "train.steps=3", "batch.global_size=4096").end()
    said = "fewer than batch.global_size=4096"
    ended.must(code=3, within=STARTING, words=[said], commits=[])
    assert ended.output.count(said) == 2  # in words and as JSON


def test_torchrun_starts_it_too(corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    where = (f"data.path={corpus / 'text.txt'}", f"data.cache_dir={corpus}", f"run.dir={tmp_path}")
    words = ("train.steps=3", "zero.stage=3")
    subprocess.run(
        [*command, "trainers.pretrain", *TINY, *where, *words],
        cwd=REPOSITORY,
        timeout=120,
        check=True,
    )
    assert len(losses(tmp_path)) == 3
    assert (tmp_path / "report" / "curves.png").stat().st_size > 10_000
