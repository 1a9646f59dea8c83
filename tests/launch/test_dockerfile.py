"""The Dockerfile, read: what it copies is here, what it installs is pinned, nothing runs as root.

It is not built here: there is no docker.
"""

import fnmatch
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.kubernetes import USER

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
LINES = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.M)).splitlines()
STEPS = [(line.split()[0], line.split(maxsplit=1)[1]) for line in LINES if line.strip()]
IGNORED = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()


def steps(name: str) -> list[str]:
    return [words for step, words in STEPS if step == name]


def test_it_has_instructions_that_docker_knows() -> None:
    assert {step for step, _ in STEPS} <= {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD"}
    assert STEPS[0][0] == "FROM" and STEPS[-1][0] == "CMD"
    for words in steps("RUN"):
        subprocess.run(["bash", "-n", "-c", words], check=True)


def test_what_is_copied_is_here_and_not_ignored() -> None:
    sources = [word for words in steps("COPY") for word in words.split()[:-1]]
    assert sources
    for source in sources:
        assert (REPOSITORY / source).exists(), source
    assert IGNORED[1] == "*"
    assert {f"!{source.split('/')[0]}" for source in sources} == {
        line for line in IGNORED if line.startswith("!")
    }


def test_all_packages_are_there() -> None:
    """Those that pyproject.toml installs, whatever they are named."""
    found = re.search(r"^include = \[(.*)\]", (REPOSITORY / "pyproject.toml").read_text(), re.M)
    assert found
    packages = {name.strip(' "*') for name in found[1].split(",")}
    assert packages <= {words.split()[0] for words in steps("COPY")}


def test_every_version_comes_from_the_constraints() -> None:
    installs = [w for words in steps("RUN") for w in re.split("&&", words) if "pip install" in w]
    for words in installs:
        told = shlex.split(words)
        assert told[2:4] == ["-c", "constraints.txt"] or "--no-deps" in told, words
        assert not any("==" in word for word in told)
    assert any(shlex.split(words)[-1] == "torch" for words in installs)
    assert re.search(r"^torch==\d", (REPOSITORY / "constraints.txt").read_text(), re.M)


def test_the_image_has_the_cuda_of_the_torch_that_is_pinned() -> None:
    """From the wheels on PyPI: a new torch asks for a look at what it is built for."""
    cuda = {"2.13.0": "13.0.3"}
    found = re.search(r"^torch==(\S+)", (REPOSITORY / "constraints.txt").read_text(), re.M)
    assert found
    assert steps("FROM") == [f"nvidia/cuda:{cuda[found[1]]}-base-ubuntu24.04"]


def test_it_runs_as_the_user_whose_group_may_write_into_volumes() -> None:
    assert steps("USER") == [str(USER)]
    after = [step for step, _ in STEPS[[step for step, _ in STEPS].index("USER") :]]
    assert "RUN" not in after and "COPY" not in after
    assert any(f"install -d -o {USER} -g {USER} /workspace" in words for words in steps("RUN"))


@pytest.mark.parametrize("pattern", ["*API_KEY*", "*TOKEN*", "*PASSWORD*", "ARG*", "ADD*"])
def test_no_secret_gets_in(pattern: str) -> None:
    assert not [line for line in LINES if fnmatch.fnmatch(line, pattern)]


def test_dependencies_can_be_installed_before_there_are_packages(tmp_path: Path) -> None:
    """The layer in the middle: all that is copied before it is enough to know what is needed."""
    before = TEXT[: TEXT.index("'.[train,triton]'")]
    for name in re.findall(r"^COPY (.*) \S+$", before, re.M):
        for source in name.split():
            (tmp_path / source).parent.mkdir(exist_ok=True)
            (tmp_path / source).write_bytes((REPOSITORY / source).read_bytes())
    code = "from setuptools.build_meta import *; print(prepare_metadata_for_build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    (entry,) = tmp_path.glob("*.dist-info/entry_points.txt")
    assert "came-train = trainers.pretrain:main" in entry.read_text()
