"""What starts a run is text: under a shell with stand-ins it says the words that were typed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch.local import LAUNCHER
from launch.spec import Start
from launch.start import hand_over, start_of
from tests.launch.jobs import AWKWARD, in_folder, job_of

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = {"nodes": 2, "gpus_per_node": 2}
# Each launcher and the settings it needs; what it starts is a stand-in that notes its words.
LAUNCHERS = {
    "torchrun": {"nodes": 2, "torchrun__rendezvous": "node0:29500"},
    "deepspeed": {},
    "slurm": {**CLUSTER, "slurm__setup": ("module() { :; }", "module load cuda")},
}
NOTES = """#!{python}
import json, os, sys
with open(os.environ["NOTES"], "a") as file:
    kept = {{name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "SLURM_NODEID")}}
    print(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], kept]), file=file)
"""
# Of its own words it drops those with dashes; one machine after the other.
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
for SLURM_NODEID in 0 1; do SLURM_NODEID=$SLURM_NODEID "$@" || exit; done
"""
SCONTROL = "#!/bin/bash\n[ \"$1 $2\" = 'show hostnames' ] && printf 'node7\\nnode8\\n'\n"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with stand-ins for all that could be started."""
    folder = tmp_path / "programs"
    folder.mkdir()
    notes = NOTES.format(python=sys.executable)
    noting = ("torchrun", "deepspeed", "came-check", "sbatch", "kubectl", "came-train")
    for name, text in {**dict.fromkeys(noting, notes), "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def run(text: str, programs: Path, folder: Path) -> list[tuple[str, list[str], dict[str, str]]]:
    """What was started by a shell that read `text`: program, words, environment."""
    notes = folder / "notes"
    environ = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "NOTES": str(notes),
        "SLURM_JOB_ID": "20017",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_CPUS_ON_NODE": "4",
    }
    done = subprocess.run(
        ["bash"], input=text, env=environ, cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(folder.glob("pwned"))
    return [json.loads(line) for line in notes.read_text().splitlines()]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_words_survive_the_shell(name: str, programs: Path, tmp_path: Path) -> None:
    text = start_of(job_of(name, **LAUNCHERS[name])).text()
    *_, (program, words, environ) = run(text, programs, tmp_path)
    assert program == {"slurm": "torchrun"}.get(name, name)
    assert tuple(words[-len(AWKWARD) :]) == AWKWARD
    assert environ["OMP_NUM_THREADS"] == "3"


def test_a_batch_script_checks_and_then_runs_on_every_machine(
    programs: Path, tmp_path: Path
) -> None:
    started = run(start_of(job_of("slurm", **LAUNCHERS["slurm"])).text(), programs, tmp_path)
    assert [(program, e["SLURM_NODEID"]) for program, _, e in started] == [
        *(("came-check", "0"), ("came-check", "1")),
        *(("torchrun", "0"), ("torchrun", "1")),
    ]
    words = started[-1][1]
    told = dict(zip(words, words[1:], strict=False))
    assert told["--rdzv-endpoint"] == "node7:20017"
    assert (told["--rdzv-id"], told["--nnodes"], told["--nproc-per-node"]) == ("20017", "2", "2")


def test_a_machine_that_fails_its_check_trains_nothing(programs: Path, tmp_path: Path) -> None:
    (programs / "came-check").write_text("#!/bin/bash\nexit 2\n")
    text = start_of(job_of("slurm", **LAUNCHERS["slurm"])).text()
    with pytest.raises(AssertionError):
        run(text, programs, tmp_path)
    assert not (tmp_path / "notes").exists()


def test_machines_of_the_deepspeed_launcher_are_in_a_file() -> None:
    job = replace(
        job_of("deepspeed", nodes=2, deepspeed__hosts=("a", "b")), words=("zero.stage=1",)
    )
    start = start_of(job)
    assert start.files == {"runs/quick/launch/hostfile": "a slots=2\nb slots=2\n"}
    assert start.command[:3] == ("deepspeed", "--hostfile", "runs/quick/launch/hostfile")


@pytest.mark.parametrize("word", ["run.dir=$(touch a)", "train.phases=[{share:0.9},{share:0.1}]"])
def test_what_a_remote_shell_would_change_is_refused(word: str) -> None:
    job = job_of("deepspeed", nodes=2, deepspeed__hosts=("a", "b"))
    with pytest.raises(ValueError, match="the shells of a, b"):
        start_of(replace(job, words=(word,)))


def test_signs_that_slurm_reads_in_names_of_files_are_written_twice() -> None:
    text = start_of(in_folder(job_of("slurm", **LAUNCHERS["slurm"]), "runs/50%j")).text()
    assert "#SBATCH --output=runs/50%%j/launch/%j.log" in text
    assert "--output=runs/50%%j/launch/%j-%N.log" in text


def test_who_is_started_by_a_sweep_is_not_its_child(monkeypatch) -> None:
    """A rank would end itself whose parent is not the launcher that the environment names."""
    monkeypatch.setenv(LAUNCHER, "1")
    assert hand_over(Start(("bash", "-c", f'[ -z "${{{LAUNCHER}:-}}" ]')), queued=True) == 0


def test_the_same_job_in_another_folder_has_files_of_its_own() -> None:
    job = job_of("slurm", **LAUNCHERS["slurm"])
    assert not start_of(job).files.keys() & start_of(in_folder(job, "runs/other")).files.keys()


SIZE = ["launch.gpus_per_node=2", "launch.nodes=2"]
DRY = {
    "local": ["launch.dry_run=true"],
    "torchrun": ["launch.dry_run=true", "launch.processes=2"],
    "deepspeed": ["launch.dry_run=true", "launch.processes=2"],
    "slurm": [*SIZE, "launch.slurm.container=came.sif"],
    "kubernetes": [*SIZE, "launch.kubernetes.image=came:1", "launch.kubernetes.claim=runs"],
}
PRINTED = {
    "local": "2 times, on this machine: came-train train.steps=30 --traceback\n",
    "torchrun": "--no-python came-train train.steps=30 --traceback\n",
    "deepspeed": "--module trainers.pretrain train.steps=30 --traceback\n",
    "slurm": "#SBATCH --nodes=2\n",
    "kubernetes": "kind: PyTorchJob\n",
}
QUICK = """
import atexit, os, subprocess, sys, time
os.execvpe = subprocess.Popen = None  # whatever is started fails
def tell(): print(time.process_time(), *{"torch", "numpy", "transformers"} & sys.modules.keys())
atexit.register(tell)
from trainers.pretrain import main
main()
"""


@pytest.mark.parametrize("name", DRY)
def test_a_dry_run_prints_and_starts_nothing(name: str, tmp_path: Path) -> None:
    words = ["--traceback", "train.steps=30", f"launch={name}", *DRY[name]]
    done = subprocess.run(
        [sys.executable, "-c", QUICK, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    printed, _, told = done.stdout.rstrip("\n").rpartition("\n")
    seconds, *heavy = told.split()
    assert heavy == []
    assert float(seconds) < 1  # of CPU: 0.4 on an idle machine
    assert PRINTED[name] in f"{printed}\n"
    assert printed.count("--traceback") == 1, "what ranks are told is handed on"
    assert list(tmp_path.iterdir()) == []
