"""--multirun: which jobs there are, where they lie, how they end; with stand-ins for training."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.local import Outcome
from trainers.errors import ConfigError
from trainers.sweep import read_sweep, run_sweep

REPOSITORY = Path(__file__).resolve().parents[2]

# The door, with a job that only says that it was started, in the way of HOW.
DOOR = """
import trainers.pretrain
trainers.pretrain.START = '''
import os, signal, sys, time
from pathlib import Path
print("started", *sys.argv[1:], flush=True)
folder = Path(next(w for w in sys.argv if w.startswith("run.dir=")).partition("=")[2])
exec(os.environ["HOW"])
'''
trainers.pretrain.main()
"""


def names(*words: str) -> list[str]:
    return [job.name for job in read_sweep(words).jobs]


def start(*words: str, how: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DOOR, "--multirun", *words],
        cwd=REPOSITORY,
        env=os.environ | {"HOW": how},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_the_product_in_the_order_typed():
    sweep = read_sweep(
        ["optimizer=came,adamw", "train.steps=30", "optimizer.lr=1e-4,2e-4", "run.seed=range(0,2)"]
    )
    assert [job.name for job in sweep.jobs][:3] == [
        "optimizer=came,optimizer.lr=0.0001,run.seed=0",
        "optimizer=came,optimizer.lr=0.0001,run.seed=1",
        "optimizer=came,optimizer.lr=0.0002,run.seed=0",
    ]
    assert len({job.name for job in sweep.jobs}) == 8
    last = sweep.jobs[-1]
    folder = "runs/quickstart_sweep/optimizer=adamw,optimizer.lr=0.0002,run.seed=1"
    assert last.words == (
        *("optimizer=adamw", "train.steps=30", "optimizer.lr=0.0002", "run.seed=1"),
        f"run.dir={folder}",
    )
    assert (last.config.optimizer.name, last.config.optimizer.lr) == ("adamw", 2e-4)
    assert (last.config.run.seed, last.config.run.dir) == (1, folder)


def test_choices_lists_and_quoted_commas():
    assert names("run.seed=choice(3,5)") == ["run.seed=3", "run.seed=5"]
    betas = read_sweep(["optimizer.betas=[0.9,0.99,0.999],[0.9,0.999,0.9999]"]).jobs
    assert [job.config.optimizer.betas[1] for job in betas] == [0.99, 0.999]
    one = read_sweep(["run.seed=0,1", "data=text", "data.path='a,b'"]).jobs
    assert {job.config.data.path for job in one} == {"a,b"}


def test_what_hydra_cannot_read_is_one_value():
    (job, _) = read_sweep(["run.seed=0,1", "data=text", "data.path=my (old) texts/[1]"]).jobs
    assert job.config.data.path == "my (old) texts/[1]"


def test_names_are_safe_and_differ_where_the_values_do():
    found = names("data=text", "data.path='a/../b','a b','a-b'")
    assert len(set(found)) == 3
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.=-") for name in found)
    assert all(".." not in name.split("/") and "/" not in name for name in found)
    long = names("data=text", f"data.path={'x' * 300},{'x' * 299}y")
    assert len(set(long)) == 2 and max(map(len, long)) < 200


def test_a_name_does_not_depend_on_the_other_jobs():
    assert set(names("run.seed=0,1")) < set(names("run.seed=0,1,2"))


def test_folders_of_several_experiments_lie_together_and_a_given_one_holds_all():
    assert read_sweep(["experiment=quickstart,quickstart_gpt2"]).folder == "runs/sweep"
    sweep = read_sweep(["run.dir=/tmp/here", "run.seed=0,1"])
    assert sweep.jobs[1].config.run.dir == "/tmp/here/run.seed=1"
    assert [word for word in sweep.jobs[1].words if word.startswith("run.dir")] == [
        "run.dir=/tmp/here/run.seed=1"
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.steps=3"], "no key has several values"),
        (["run.dir=a,b", "run.seed=0,1"], "the folder of all jobs"),
        (["run.seed=0,1,0"], "same value twice"),
        (["optimizer.lr=interval(0,1)"], "write all values"),
        (["optimizer=glob(*)"], "write all values"),
        (["launch=local,slurm"], "the same for all jobs"),
    ],
)
def test_what_is_no_sweep_is_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        read_sweep(words)


def test_all_problems_of_all_jobs_are_told_with_their_names():
    with pytest.raises(ConfigError) as error:
        read_sweep(["optimizer=came,adamx", "run.seed=0,x", "trian.steps=3"])
    lines = str(error.value).split("\n  - ")
    assert lines[0] == "3 problems in the configuration"
    assert lines[1] == "unknown key 'trian.steps'; did you mean 'train.steps'?"  # of all jobs
    assert "run.seed" in lines[2] and lines[2].endswith(
        "(in optimizer=came,run.seed=x; optimizer=adamx,run.seed=x)"
    )
    assert "adamx" in lines[3] and "optimizer=adamx,run.seed=0;" in lines[3]


def test_the_table_tells_how_each_ended(tmp_path):
    sweep = read_sweep([f"run.dir={tmp_path}", "run.seed=0,1,2"])
    done = tmp_path / "run.seed=0"
    done.mkdir()
    rows = [{"step": 1, "eval/loss": 5.0}, {"step": 2, "eval/loss": 4.5, "eval/mlm_accuracy": 0.25}]
    (done / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcomes = iter([Outcome(0), Outcome(5, 1), Outcome(3, 0)])
    told: list[str] = []
    assert run_sweep(sweep, lambda job: next(outcomes), told.append) == 5  # the first that failed
    table = told[-1].splitlines()
    assert [line.split() for line in table[:2]] == [
        ["job", "outcome", "held", "out"],
        ["run.seed=0", "done", "loss", "4.5000,", "25.00%", "guessed", "right"],
    ]
    assert table[2].split() == ["run.seed=1", "failed,", "code", "5"]
    assert table[-1] == f"compare them: came-report {tmp_path}"


def test_one_that_fails_does_not_stop_the_others(tmp_path):
    how = "sys.exit(3 if folder.name == 'run.seed=0' else 0)"
    code, out, _ = finish(start(f"run.dir={tmp_path}", "run.seed=0,1", how=how))
    assert code == 3
    assert out.count("\nstarted") == 2
    assert "failed, code 3" in out and "run.seed=1  done" in out


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_a_request_to_stop_reaches_the_job_once_and_ends_the_sweep(tmp_path, name, code):
    """The job takes its time to save; the next is not started, even if this one was done."""
    how = f"""
asked = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda number, _: asked.append(number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT))
Path({str(tmp_path)!r}, "ready").touch()
while not asked: time.sleep(0.01)
time.sleep(0.3)
print("asked", *asked, flush=True)
sys.exit({code if name != "SIGUSR1" else 0})
"""
    process = start(f"run.dir={tmp_path}", "run.seed=0,1,2", how=how)
    limit = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    number = signal.Signals[name]
    process.send_signal(number)
    ended, out, err = finish(process)
    assert ended == code, out + err
    assert out.count("\nstarted") == 1
    assert f"asked {int(number)}\n" in out
    assert "run.seed=0  stopped" in out and "run.seed=1  not started" in out
    assert out.endswith("stopped; the same command goes on\n")


def test_a_cluster_gets_all_jobs_and_the_code_of_the_first_it_refuses(tmp_path):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(
        '#!/bin/bash\ngrep -o "run.dir=.*[0-9]" "$1"\n[[ "$1" != *=0/* ]] || exit 4\n'
    )
    sbatch.chmod(0o755)
    words = ["launch=slurm", "launch.gpus_per_node=2", "run.seed=0,1", f"run.dir={tmp_path}/runs"]
    words += ["launch.submit=true"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainers.pretrain", "-m", *words],
        cwd=REPOSITORY,
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    code, out, err = finish(process)
    assert (code, err) == (4, "")
    assert out.splitlines() == [
        *("# job 1 of 2: run.seed=0", f"run.dir={tmp_path}/runs/run.seed=0"),
        *("# job 2 of 2: run.seed=1", f"run.dir={tmp_path}/runs/run.seed=1"),
    ]
    assert len(list((tmp_path / "runs").glob("run.seed=*/launch/job.sbatch"))) == 2


def test_without_multirun_several_values_name_it():
    done = subprocess.run(
        [sys.executable, "-m", "trainers.pretrain", "optimizer=came,adamw", "run.seed=0,1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.count("--multirun starts a job for each") == 4  # two problems, told twice


def test_a_rank_starts_no_sweep():
    environ = os.environ | {"RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "trainers.pretrain", "-m", "run.seed=0,1"],
        cwd=REPOSITORY,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "--multirun starts the ranks" in done.stderr


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("data.path=my texts/a,my texts/b", ["my texts/a", "my texts/b"]),
        ("data.path=1_000,2e3", ["1_000", "2e3"]),
        (r"data.path=C:\x,it's", [r"C:\x", "it's"]),
        ("data.path='a, b',c", ["a, b", "c"]),
    ],
)
def test_text_is_taken_as_it_was_typed(word: str, values: list[str]) -> None:
    jobs = read_sweep(["experiment=quickstart", "data=text", word]).jobs
    assert [job.config.data.path for job in jobs] == values


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizer.lr=1e-4,2e-4", "optimizer.lr=3e-4"], "optimizer.lr is given more than once"),
        (["optimizer.lr=1e-4", "+optimizer.lr=2e-4,3e-4"], "optimizer.lr is given more than once"),
        (["run.seed=range(0,0)"], "has no value"),
    ],
)
def test_jobs_that_would_be_called_what_they_are_not(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_sweep(["experiment=quickstart", *words])
