"""The page of came-check: each check can be green and red, and says what to do."""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from tests.trainers.data.corpus import write_text
from trainers import check
from trainers.checks import all_reduce, configuration, disk, environment, memory
from trainers.checks.all_reduce import Speed
from trainers.checks.environment import Version, check_environment
from trainers.checks.machine import Gpu, Machine, host_memory
from trainers.checks.page import Check, size
from trainers.compose import compose
from trainers.config import Config
from trainers.errors import PeerLostError
from trainers.planner.plan import RunPlan, plan_run

SPEED = Speed("gloo", 1e-4, 1e9)
SMALL = ("data=text", "data.vocab_size=300", "batch.global_size=8", "objective.sequence_length=32")
LAPTOP = Machine((), 2, 16 * 10**9, None)


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "measure", lambda: SPEED)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A run that reads 200 documents and writes below `tmp_path`."""
    file = write_text(tmp_path / "text.txt", num_documents=200)
    places = [f"data.path={file}", f"data.cache_dir={tmp_path}/cache", f"run.dir={tmp_path}/run"]
    return [*SMALL, *places]


def planned(*words: str) -> tuple[Config, RunPlan]:
    config = compose(words, 2, needs_text=False)
    return config, plan_run(config, "CPU", 1.0)


def test_one_page_in_order(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([*words, "--no-parity"]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    names = ("Environment", "Configuration", "Data", "Disk space", "Memory plan")
    assert titles == [f"{name}: OK" for name in (*names, "Fidelity to the paper")]
    assert lines[-1] == "6 checks, all OK."


def test_all_that_is_red_is_shown_and_the_first_gives_the_code(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wrong = ["data.path=nowhere/", "model.hidden=262144", "model.layers=1", "--json"]
    assert check.main([*words, *wrong, "--no-parity"]) == 3
    found = {each["title"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    red = {title: each["exit_code"] for title, each in found.items() if not each["is_green"]}
    assert red == {"Data": 3, "Disk space": 6, "Memory plan": 8}
    assert "nowhere" in found["Data"]["text"]
    assert "smaller checkpoint.keep" in found["Disk space"]["text"]
    assert "zero.stage=2 or 3" in found["Memory plan"]["text"]
    assert found["Configuration"]["details"]["work"]["steps"] == 1600
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


def test_a_recipe_without_its_text_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["model=bert_mini", "batch.micro_size=1"]
    assert check.main(["experiment=bert_large_32k", *small, "--no-parity"]) == 3
    page = capsys.readouterr().out
    assert "## Data: REFUSED\n\ndata=text needs data.path=FILE_OR_FOLDER" in page
    assert "## Fidelity to the paper: OK" in page and "### Deviations" in page
    assert page.splitlines()[-1] == "Refused: Data."


@pytest.mark.parametrize(
    ("wrong", "answer"),
    [
        ("experiment=quikstart", "did you mean 'quickstart'"),
        ("--enviroment", "did you mean '--environment'"),
    ],
)
def test_wrong_words_are_answered_before_anything_is_looked_at(
    wrong: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main([wrong]) == 2
    told = capsys.readouterr()
    assert answer in told.err and told.out == ""


def test_checkpoints_that_are_kept_and_the_one_being_written(tmp_path: Path) -> None:
    best = ("checkpoint.keep=4", "checkpoint.best=eval/loss", "eval.every=10")
    config, plan = planned(f"run.dir={tmp_path}/new/run", "optimizer=adamw", *best)
    found = disk.check_disk(config, plan, unprepared=1000)
    assert found.is_green
    assert found.details["checkpoint_bytes"] == 12 * plan.num_params  # and two of AdamW
    run, cache = found.details["places"]
    assert run["needed"] == 6 * 12 * plan.num_params and cache["needed"] == 2000
    (tmp_path / "new" / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    file = tmp_path / "new" / "run" / "checkpoints" / "step-00000001" / "file"
    file.write_bytes(bytes(10**6))
    again = disk.check_disk(config, plan, unprepared=0)
    assert again.details["places"][0]["needed"] == run["needed"] - 10**6


def test_places_on_one_disk_share_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plan = planned(f"run.dir={tmp_path}/run", f"data.cache_dir={tmp_path}/cache")
    each = 3 * disk.checkpoint_bytes(plan)
    usage = type("Usage", (), {"free": 2 * each - 2})
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    assert disk.check_disk(config, plan, unprepared=each // 2 - 1).is_green
    refused = disk.check_disk(config, plan, unprepared=each // 2)
    assert (refused.is_green, refused.exit_code) == (False, 6)
    assert "run.dir and data.cache_dir: " in refused.text


def test_a_run_dir_that_cannot_be_a_folder_is_red(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config, plan = planned(f"run.dir={tmp_path}/file/run")
    found = disk.check_disk(config, plan, 0)
    assert not found.is_green and "cannot be written: choose another" in found.text


def test_memory_is_that_of_the_smallest_gpu() -> None:
    config, plan = planned()
    most = plan.rows["came"].memory.total
    gpus = (Gpu("H100", 80 * 10**9, 0), Gpu("tiny", most - 1, 0))
    found = memory.check_memory(config, plan, replace(LAPTOP, gpus=gpus))
    assert (found.is_green, found.exit_code) == (False, 8) and "each tiny" in found.text
    assert memory.check_memory(config, plan, replace(LAPTOP, gpus=gpus[:1])).is_green


def test_on_a_cpu_all_processes_share_one_memory() -> None:
    config, plan = planned()
    both = 2 * plan.rows["came"].memory.total
    assert memory.check_memory(config, plan, replace(LAPTOP, memory=both)).is_green
    assert not memory.check_memory(config, plan, replace(LAPTOP, memory=both - 1)).is_green


def test_other_machines_are_not_known() -> None:
    config, plan = planned()
    for launch in ({"nodes": 2, "name": "torchrun"}, {"name": "slurm"}):
        cluster = replace(config, launch=replace(config.launch, **launch))
        found = memory.check_memory(cluster, plan, replace(LAPTOP, memory=1))
        assert found.is_green and "not known here" in found.text


def test_offload_needs_memory_of_the_host() -> None:
    config, plan = planned("zero.offload_optimizer=true", "zero.stage=2")
    host = plan.rows["came"].memory.host
    gpus = (Gpu("H100", 80 * 10**9, 0),) * 2
    enough = Machine(gpus, 8, 2 * host, None)
    assert memory.check_memory(config, plan, enough).is_green
    assert not memory.check_memory(config, plan, replace(enough, memory=2 * host - 1)).is_green


def test_a_micro_batch_that_is_found_counts_what_is_there_all_the_time() -> None:
    config, plan = planned("runtime.micro_batch=auto", "batch.micro_size=0")
    kept = replace(LAPTOP, memory=2 * plan.rows["came"].memory.kept)
    assert memory.check_memory(config, plan, kept).is_green
    page = configuration.check_configuration(config, plan)
    assert "2 processes x micro batches as large as fit, found at the start" in page.text
    assert page.details["batch"]["micro_size"] is None


class Installed:
    """A package as pip has installed it."""

    metadata = {"Requires-Python": ">=3.10"}
    requires = [
        "torch>=2.10",
        'deepspeed>=0.19 ; extra == "deepspeed"',
        'came-pretraining[deepspeed] ; extra == "train"',
        'pytest>=8000 ; extra == "dev"',
        'transformers>=5.23 ; extra == "train"',
    ]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The versions that pip has, to be changed."""
    versions = {"torch": "2.13.0+cpu", "deepspeed": "0.19.8", "transformers": "5.23.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    monkeypatch.setattr(metadata, "version", version)
    yield versions


def test_versions_are_compared_with_what_is_asked_for(installed: dict[str, str]) -> None:
    found = check_environment()
    assert found.is_green and "torch 2.13.0+cpu (>=2.10), deepspeed 0.19.8 (>=0.19)" in found.text
    installed["torch"] = "2.9.1"
    del installed["deepspeed"]
    refused = check_environment()
    assert (refused.is_green, refused.exit_code) == (False, 2)
    assert "torch 2.9.1 (>=2.10), deepspeed is not installed (>=0.19)" in refused.text
    assert "pip install 'torch>=2.10' 'deepspeed>=0.19'" in refused.text
    assert "pytest" not in refused.text


def test_a_wrong_version_ends_the_page(
    installed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    installed["transformers"] = "4.0"
    assert check.main(["--no-parity"]) == 2
    assert capsys.readouterr().out.count("##") == 1


def test_a_missing_compiler_is_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = check_environment()
    assert found.is_green and "not found: C++ compiler (no-such-compiler)" in found.text


def test_ranks_that_cannot_talk_are_red(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> Speed:
        raise PeerLostError("no way")

    monkeypatch.setattr(environment, "measure", fail)
    assert check.main(["--environment", "--json"]) == 7
    (found,) = json.loads(capsys.readouterr().out)["checks"]
    assert "no way" in found["text"] and found["details"]["machine"]["cores"] >= 1


def test_the_machine_alone_takes_no_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--environment"]) == 0
    assert "sum 4 bytes in 100 us, large buffers at 1.0 GB a second" in capsys.readouterr().out
    assert check.main(["--environment", "train.steps=3"]) == 2


def test_two_ranks_measure_their_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    speed = all_reduce.measure()
    assert speed.backend == "gloo"
    assert 1e-6 < speed.latency_seconds < 1 and 1e6 < speed.bytes_per_second < 1e12


def test_a_container_has_what_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "some").write_text("1000000\n")
    (tmp_path / "all").write_text("max\n")
    assert host_memory((str(tmp_path / "some"), str(tmp_path / "none"))) == 10**6
    assert host_memory((str(tmp_path / "all"),)) == host_memory(()) > 10**8


def test_words_for_numbers() -> None:
    assert [size(n) for n in (1e3, 12.6e6, 4.14e9, 2e12)] == [
        "1.0 kB",
        "12.6 MB",
        "4.1 GB",
        "2.0 TB",
    ]
    assert str(Version("torch", None, ">=2")) == "torch is not installed (>=2)"
    assert Version("torch", "2.13.0+cpu", ">=2.10").fits
    assert Check("a", True, "b").exit_code == 0


def test_gpus_are_named_and_their_kernels_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (Gpu("NVIDIA H200", 150 * 10**9, 149 * 10**9),)
    monkeypatch.setattr(environment, "this_machine", lambda: replace(LAPTOP, gpus=gpus))
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    found = check_environment()
    assert found.is_green and "GPU 0: NVIDIA H200, 150.0 GB, of which 149.0 GB" in found.text
    assert "triton: CAME then runs on plain torch" in found.text
