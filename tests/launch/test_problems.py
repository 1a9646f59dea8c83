"""What is wrong with a way to start a run is told before anything is started."""

import pytest

from launch.problems import problems_of_launch
from tests.launch.jobs import launch_of
from trainers.compose import compose
from trainers.errors import ConfigError

SIZE = {"gpus_per_node": 2}
RUN_DIR = "runs/a run"
POD = {**SIZE, "kubernetes__image": "came:1", "kubernetes__claim": "runs"}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("local", {}),
        ("torchrun", {}),
        ("torchrun", {"nodes": 2, "torchrun__rendezvous": "node0:29500"}),
        ("deepspeed", {}),
        ("deepspeed", {"nodes": 2, "deepspeed__hosts": ("a", "b")}),
        ("slurm", {**SIZE, "slurm__time": "1-12:00:00"}),
        ("slurm", {"processes": 2, "slurm__setup": ("module load cuda", "ulimit -n 4096")}),
        ("kubernetes", {**POD, "kubernetes__env": ("A=b=c", "EMPTY=", "K=secret:a-b/c_d")}),
    ],
)
def test_nothing_is_wrong_with(name, changes):
    assert list(problems_of_launch(launch_of(name, **changes), RUN_DIR)) == []


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("local", {"nodes": 2}, "launch=local is this machine alone"),
        ("local", {"processes": 2, "gpus_per_node": 4}, "differ: every GPU has one process"),
        ("torchrun", {"torchrun__min_nodes": 2}, "min_nodes=2 is more than launch.nodes"),
        ("torchrun", {"nodes": 2}, "launch.torchrun.rendezvous=HOST:PORT"),
        ("torchrun", {"torchrun__rendezvous": "node0"}, "must be HOST:PORT"),
        ("torchrun", {"torchrun__rendezvous": "node0:1; rm -r ."}, "must be HOST:PORT"),
        ("deepspeed", {"nodes": 2}, "names 0: name all machines"),
        ("deepspeed", {"nodes": 1, "deepspeed__hosts": ("a", "b")}, "names 2"),
        ("deepspeed", {"nodes": 2, "deepspeed__hosts": ("a", "a")}, "names a machine twice"),
        ("slurm", {}, "launch=slurm needs launch.gpus_per_node=8"),
        ("slurm", {**SIZE, "slurm__time": "a day"}, "must be [days-]hours:minutes:seconds"),
        ("slurm", {**SIZE, "slurm__partition": "a\nrm -r ."}, "must be one line"),
        ("slurm", {**SIZE, "slurm__options": ("--qos=a\nrm",)}, "must be one line"),
        ("kubernetes", POD | {"gpus_per_node": 0}, "launch=kubernetes needs"),
        ("kubernetes", POD | {"kubernetes__image": None}, "image is not given"),
        ("kubernetes", POD | {"kubernetes__claim": None}, "claim is not given"),
        ("kubernetes", POD | {"kubernetes__env": ("no value",)}, "must be NAME=value"),
        ("kubernetes", POD | {"kubernetes__env": ("K=secret:a",)}, "names no key"),
        ("kubernetes", POD | {"kubernetes__env": ("K=secret:/b",)}, "names no key"),
        ("kubernetes", POD | {"kubernetes__memory": "512GB"}, "must be a quantity"),
        ("kubernetes", POD | {"kubernetes__shared_memory": "much"}, "must be a quantity"),
    ],
)
def test_one_thing_is_wrong_and_is_told(name, changes, said):
    (problem,) = problems_of_launch(launch_of(name, **changes), RUN_DIR)
    assert said in problem


@pytest.mark.parametrize(
    ("name", "changes", "run_dir", "said"),
    [
        ("slurm", SIZE, "runs/a\ntouch b", "must be one line"),
        ("slurm", SIZE, "runs\\a", "a backslash"),
        ("kubernetes", POD, "/home/me/runs/a", "is not below launch.kubernetes.mount=/workspace"),
        ("kubernetes", POD, "~/runs", "is not below"),
        ("kubernetes", POD, "../a", "is not below"),
        ("kubernetes", POD, "/workspacerun/a", "is not below"),
    ],
)
def test_a_folder_that_would_be_lost_is_refused(name, changes, run_dir, said):
    (problem,) = problems_of_launch(launch_of(name, **changes), run_dir)
    assert said in problem


def test_a_folder_in_the_volume_is_taken():
    assert list(problems_of_launch(launch_of("kubernetes", **POD), "/workspace/runs/a")) == []


def test_all_is_told_at_once():
    launch = launch_of("kubernetes", processes=1, gpus_per_node=2)
    said = " ".join(problems_of_launch(launch, RUN_DIR))
    assert all(words in said for words in ("differ", "image", "claim"))


@pytest.mark.parametrize(
    "word",
    ["WANDB_API_KEY=abc", "HF_TOKEN=1234567", "PROXY=http://me:pass@host/", "A=hf_" + 20 * "x"],
)
def test_a_secret_is_not_written_into_a_file(word):
    words = ["launch=kubernetes", "launch.gpus_per_node=8", "launch.kubernetes.image=came:1"]
    words += ["launch.kubernetes.claim=runs", "batch.global_size=32"]
    with pytest.raises(ConfigError, match="has a secret as its value") as error:
        compose([*words, f'launch.kubernetes.env=["{word}"]'])
    assert word.partition("=")[2] not in str(error.value)
    compose([*words, 'launch.kubernetes.env=["NCCL_DEBUG=INFO","HF_TOKEN=secret:hub/token"]'])
