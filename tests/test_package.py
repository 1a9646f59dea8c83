"""What pip installs: a wheel with everything in it, of which `came` needs torch alone."""

import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email.parser import HeaderParser
from pathlib import Path

import pytest

import came

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("came", "configs", "launch", "trainers")

# What came may not import: all that is not torch, and that torch itself does without.
ALONE = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in {refused}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refused())
sys.path[0] = {place!r}
import came
import torch
assert came.__file__.startswith({place!r}), came.__file__
parameter = torch.nn.Parameter(torch.ones(4, 3))
optimizer = came.CAME([parameter], lr=1e-3, kernel="eager")
parameter.sum().backward()
optimizer.step()
assert 0 < (1 - parameter.detach()).max() < 0.1
print(came.__version__)
"""
REFUSED = (
    *("accelerate", "configs", "datasets", "deepspeed", "hydra", "launch", "matplotlib"),
    *("omegaconf", "packaging", "rich", "safetensors", "tokenizers", "trainers", "transformers"),
    *("triton", "wandb", "yaml"),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves folders beside the sources."""
    copy = tmp_path_factory.mktemp("copy")
    for name in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", copy / "out", copy],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (found,) = (copy / "out").glob("*.whl")
    return found


def test_the_wheel_has_every_file_that_is_read(wheel: Path) -> None:
    sources = {
        str(file.relative_to(REPOSITORY))
        for name in PACKAGES
        for file in (REPOSITORY / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".md"
    }
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert inside == sources
    for name in ("came/py.typed", "trainers/reports/page.html", "configs/config.yaml"):
        assert name in inside


def test_came_needs_torch_alone(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = ALONE.format(refused=set(REFUSED), place=str(tmp_path))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, f"{came.__version__}\n"), done.stderr


def test_version_licence_and_commands(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    told = HeaderParser().parsestr(archive.read(metadata).decode())
    assert (told["Version"], told["License-Expression"]) == (came.__version__, "Apache-2.0")
    assert told["Requires-Python"] == ">=3.10"
    always = [need for need in told.get_all("Requires-Dist") if "extra ==" not in need]
    assert [need.partition(">")[0] for need in always] == ["torch"]
    assert f"\n## {came.__version__} " in (REPOSITORY / "CHANGELOG.md").read_text()
    (entries,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
    commands = ConfigParser()
    commands.read_string(archive.read(entries).decode())
    for name, place in commands["console_scripts"].items():
        module, _, function = place.partition(":")
        source = archive.read(f"{module.replace('.', '/')}.py").decode()
        assert name.startswith("came-") and f"\ndef {function}(" in source
