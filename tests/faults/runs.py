"""Whole runs that are broken on purpose: how they are started, and what is left of them."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from safetensors import safe_open

from trainers.run import tensors
from trainers.run.step_folders import committed, step_of

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "CAME_TEST_TOKEN"  # in the environment of all that a test starts

TINY = (
    *("data=text", "data.vocab_size=300", "objective.sequence_length=48"),
    *("objective.max_predictions=8", "model.layers=2", "model.hidden=32", "model.heads=2"),
    *("model.intermediate=64", "model.max_positions=64", "model.dropout=0.1"),
    *("batch.global_size=24", "batch.micro_size=6", "train.log_every=1", "eval.samples=24"),
    *("runtime.threads=1", "launch.processes=2", "checkpoint.every=3"),
)
OURS = ("-m", "trainers.pretrain")
REFUSED = 4
STARTING = 120.0  # seconds that a short run may take where the machine does other things as well
SPOKEN = range(2, 10)  # codes that come with a JSON line
TORCHRUN = (
    *("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"),
    *("-m", "trainers.pretrain"),
)


@dataclass(frozen=True)
class Ended:
    """What a start of a run left behind; that no process of it is left is known."""

    code: int
    output: str
    seconds: float  # to the end: from the test's last deed, else the first fault, else the start
    run_dir: Path
    halves: frozenset[str]  # half-written folders that were there when it began

    @property
    def last_words(self) -> list[dict]:
        """The JSON lines of the processes that said why they end."""
        lines = [line for line in self.output.splitlines() if line.startswith('{"reason"')]
        return [json.loads(line) for line in lines]

    def must(
        self, *, code: int, within: float, words: Sequence[str], commits: Sequence[int]
    ) -> "Ended":
        """Assert all that a fault is held to, and give it back.

        Args:
            within: seconds to the end of all processes.
            words: each stands in the output.
            commits: the committed steps, newest first; each is whole, unless loading was refused
                (4). What is half written is none, and is gone once a later start has loaded.
        """
        assert self.code == code, self.output
        assert [text for text in words if text not in self.output] == [], self.output
        assert self.seconds < within, f"{self.seconds:.1f} s\n{self.output}"
        found = committed(self.run_dir / "checkpoints")
        assert [step_of(folder) for folder in found] == list(commits), self.output
        for folder in found if code != REFUSED else ():
            tensors.verify(folder)
        left = halves(self.run_dir)
        went_on = code == 0 or re.search(r"^(step +\d+/|goes on from step)", self.output, re.M)
        assert not went_on or not left & self.halves, left
        assert code != 0 or not left, left
        told = [last["exit_code"] for last in self.last_words]
        assert code not in SPOKEN or code in told, self.output
        return self

    def told(self, code: int) -> list[dict]:
        """The last words of the processes that ended with `code`."""
        return [last for last in self.last_words if last["exit_code"] == code]


class Started:
    """A run in a process of its own, and all that this process starts."""

    running: ClassVar[list["Started"]] = []

    def __init__(
        self,
        corpus: Path,
        run_dir: Path,
        *words: str,
        fault: str = "",
        command: Sequence[str] = OURS,
        settings: Sequence[str] = TINY,
        **environ: str,
    ) -> None:
        self._token = uuid.uuid4().hex
        self._run_dir, self._halves = run_dir, halves(run_dir)
        self._signalled: float | None = None
        self._log = run_dir.parent / f"{run_dir.name}-{self._token}.log"
        where = (f"data.path={corpus / 'text.txt'}", f"data.cache_dir={corpus}")
        removed = ("RANK", "WORLD_SIZE", "CAME_FAULT", "CAME_FAULT_TEST")
        kept = {name: value for name, value in os.environ.items() if name not in removed}
        faults = {"CAME_FAULT": fault, "CAME_FAULT_TEST": "1"} if fault else {}
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *command, *settings, *where, f"run.dir={run_dir}", *words],
            cwd=REPOSITORY,
            env={**kept, "OMP_NUM_THREADS": "1", TOKEN: self._token, **faults, **environ},
            stdout=open(self._log, "wb"),  # noqa: SIM115  the process has it until it ends
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.running.append(self)

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, words: str | Path, seconds: float = 240) -> None:
        """Until the output has a line with `words`, or the path exists."""
        limit = time.monotonic() + seconds
        while not (words.exists() if isinstance(words, Path) else words in self.output):
            assert self.process.poll() is None, self.output
            assert time.monotonic() < limit, self.output
            time.sleep(0.01)

    def ranks(self) -> list[int]:
        """The pids of the ranks, by rank."""
        found = {}
        for pid in self.alive():
            environ = _environ(pid)
            if "RANK" in environ and pid not in found.values():
                found.setdefault(int(environ["RANK"]), pid)
        return [found[rank] for rank in sorted(found)]

    def alive(self) -> list[int]:
        """All processes that this start is the reason for, oldest first; zombies do not count."""
        pids = sorted(int(path.name) for path in Path("/proc").glob("[0-9]*"))
        return [pid for pid in pids if _environ(pid).get(TOKEN) == self._token]

    def signal(self, signum: int, pids: Sequence[int] = ()) -> None:
        """Send it to `pids`, or else to the process that was started; the time counts from here."""
        self._signalled = time.monotonic()
        for pid in pids or [self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def starve(self, pid: int) -> None:
        """No more memory for a process than it has; the time counts from here."""
        self._signalled = time.monotonic()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))

    def kill(self) -> None:
        """End it and all that it has started, youngest first."""
        if alive := self.alive():
            self.signal(signal.SIGKILL, alive[::-1])

    def end(self, seconds: float = 240) -> Ended:
        """Wait for the end; fails if a process outlives it, or if a fault was not injected."""
        code = self.process.wait(timeout=seconds)
        ended = time.monotonic()
        output = self.output
        faults = re.findall(r"^fault: (\w+) at .* at ([\d.]+) s$", output, re.M)
        # A sleep before another fault only makes sure of what has happened until then.
        harmful = [fault for fault in faults if fault[0] != "sleep"] or faults
        times = [float(seconds) for _, seconds in harmful]
        limit = time.monotonic() + 5
        while (alive := self.alive()) and time.monotonic() < limit:
            time.sleep(0.05)
        assert alive == [], f"left behind: {alive}\n{output}"
        begun = min(times, default=self.began) if self._signalled is None else self._signalled
        since = "start" if begun == self.began else "fault"
        print(f"ended with {code}, {ended - begun:.1f} s after its {since}")
        return Ended(code, output, ended - begun, self._run_dir, self._halves)


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """A test that fails does not leave its runs behind."""
    yield
    while Started.running:
        Started.running.pop().kill()


def _environ(pid: int) -> dict[str, str]:
    try:
        if Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] == "Z":
            return {}
        parts = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(part.split("=", 1) for part in parts if "=" in part)


def halves(run_dir: Path) -> frozenset[str]:
    """The folders of interrupted saves and prunes."""
    checkpoints = run_dir / "checkpoints"
    marks = ("step-*.tmp-*", "step-*.trash-*")
    return frozenset(path.name for mark in marks for path in checkpoints.glob(mark))


def commits(run_dir: Path) -> list[int]:
    """The committed steps, newest first."""
    return [step_of(folder) or 0 for folder in committed(run_dir / "checkpoints")]


def state(run_dir: Path, step: int) -> dict[str, bytes]:
    """Every tensor of a commit as bytes, by name."""
    found = {}
    for path in sorted((run_dir / "checkpoints" / f"step-{step:08d}").glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            found |= {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    return found


def lines(run_dir: Path) -> list[dict]:
    """What was measured, a line for each logged step."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> dict[int, float]:
    return {line["step"]: line["train/loss"] for line in lines(run_dir)}


def learned(run_dir: Path) -> list[dict]:
    """Of each logged step what must be the same however often the run was broken."""
    kept = ("step", "samples", "tokens", "train/loss", "train/lr", "train/skipped_steps")
    return [
        {key: line[key] for key in line if key in kept or key.startswith("eval/")}
        for line in lines(run_dir)
    ]
