"""Whether this machine has what a run needs: versions, devices, compiler, ranks that can talk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from trainers.checks.all_reduce import Speed, measure
from trainers.checks.machine import Machine, this_machine
from trainers.checks.page import Check, bullets, checked, size
from trainers.errors import ConfigError, RunError

TITLE = "Environment"
PACKAGE = "came-pretraining"
_EXTRAS = ("", "deepspeed", "train")  # of pyproject.toml: what came-train imports
_TOLD = ("torch", "deepspeed", "transformers")  # always; others when they are wrong


@dataclass(frozen=True)
class Version:
    """A package and what pyproject.toml asks of it."""

    name: str
    found: str | None  # None = not installed
    wanted: str  # as ">=2.10", or empty

    @property
    def fits(self) -> bool:
        from packaging.specifiers import SpecifierSet

        if self.found is None:
            return False
        return SpecifierSet(self.wanted).contains(self.found, prereleases=True)

    def __str__(self) -> str:
        return f"{self.name} {self.found or 'is not installed'}" + (
            f" ({self.wanted})" if self.wanted else ""
        )


def check_environment() -> Check:
    """Red for a wrong version, and for ranks that cannot talk to each other."""
    return checked(TITLE, _look)


def _look() -> Check:
    versions = list(installed_versions())
    wrong = [version for version in versions if not version.fits]
    lines = [", ".join(str(v) for v in versions if v.name in ("Python", *_TOLD) or v in wrong)]
    if wrong:  # nothing below would be worth its seconds, or even be imported
        names = " ".join(f"'{v.name}{v.wanted}'" for v in wrong if v.name != "Python")
        lines.append(
            f"WRONG: {', '.join(map(str, wrong))}" + (f": pip install {names}" * bool(names))
        )
        details = {"versions": [asdict(v) | {"fits": v.fits} for v in versions]}
        return Check(TITLE, False, bullets(lines), details, ConfigError.exit_code)
    machine = this_machine()
    lines += [*_not_compared(versions), *_devices(machine), *_kernels(machine)]
    details = {
        "versions": [asdict(v) | {"fits": True} for v in versions],
        "machine": asdict(machine),
    }
    try:
        speed = measure()
    except RunError as error:
        return Check(TITLE, False, bullets([*lines, str(error)]), details, error.exit_code)
    details["all_reduce"] = asdict(speed)
    return Check(TITLE, True, bullets([*lines, _told(speed)]), details)


def installed_versions() -> Iterator[Version]:
    """Python and the packages of pyproject.toml, as the installed package knows them.

    A checkout that is not installed knows no ranges: then the main packages alone.
    """
    python = platform.python_version()
    try:
        own = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        yield Version("Python", python, "")
        yield from (Version(name, _version(name), "") for name in _TOLD)
        return
    from packaging.requirements import Requirement

    yield Version("Python", python, own.metadata["Requires-Python"] or "")
    for text in own.requires or ():
        need = Requirement(text)
        applies = (need.marker is None) or any(
            need.marker.evaluate({"extra": extra}) for extra in _EXTRAS
        )
        if applies and need.name != PACKAGE:
            yield Version(need.name, _version(need.name), str(need.specifier))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _not_compared(versions: list[Version]) -> Iterator[str]:
    if not any(version.wanted for version in versions):
        yield (
            f"{PACKAGE} is not installed in this Python, so the ranges that it asks for are not "
            "known: pip install -e '.[train]'"
        )


def _devices(machine: Machine) -> Iterator[str]:
    for number, gpu in enumerate(machine.gpus):
        yield f"GPU {number}: {gpu.name}, {size(gpu.total)}, of which {size(gpu.free)} are free"
    if not machine.gpus:
        cards = len(list(Path("/dev").glob("nvidia[0-9]*")))
        hidden = f", though there are {cards} NVIDIA devices: is this torch built for them?"
        yield f"no GPU that torch can use{hidden if cards else ': a run computes on the CPU'}"
    free = f", of which {size(machine.available)} are free" if machine.available else ""
    yield f"{machine.cores} CPU cores, {size(machine.memory)} of memory{free}"


def _kernels(machine: Machine) -> Iterator[str]:
    """What the fused kernels need; without, plain torch runs: a hint, and never red."""
    compiler = os.environ.get("CXX", "c++")
    # As launch.local has it: DeepSpeed finds the `ninja` beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    needs = {f"C++ compiler ({compiler})": compiler, "ninja": "ninja"}
    missing = [name for name, program in needs.items() if shutil.which(program, path=path) is None]
    if machine.gpus and find_spec("triton") is None:
        missing.append("triton")
    if missing:
        yield (
            f"not found: {', '.join(missing)}: CAME then runs on plain torch, which is slower, and "
            "DeepSpeed's own kernels cannot be built"
        )
    else:
        yield f"kernels can be built: {', '.join(needs)}" + ", triton" * bool(machine.gpus)


def _told(speed: Speed) -> str:
    return (
        f"two processes of this machine sum 4 bytes in {speed.latency_seconds * 1e6:,.0f} us, "
        f"large buffers at {size(speed.bytes_per_second)} a second ({speed.backend})"
    )
