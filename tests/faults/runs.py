"""Whole runs that are broken on purpose: how they are started, and what is left of them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from safetensors import safe_open

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
TORCHRUN = (
    *("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"),
    *("-m", "trainers.pretrain"),
)


@dataclass(frozen=True)
class Ended:
    """What a start of a run left behind."""

    code: int
    output: str
    seconds: float  # from the first fault to the end; from the start where there was none

    @property
    def last_words(self) -> list[dict]:
        """The JSON lines of the processes that said why they end."""
        lines = [line for line in self.output.splitlines() if line.startswith('{"reason"')]
        return [json.loads(line) for line in lines]


class Started:
    """A run in a process of its own, and all that this process starts."""

    running: ClassVar[list["Started"]] = []

    def __init__(
        self,
        corpus: Path,
        run_dir: Path,
        *words: str,
        fault: str = "",
        command=OURS,
        **environ: str,
    ) -> None:
        self._token = uuid.uuid4().hex
        self._log = run_dir.parent / f"{run_dir.name}-{self._token}.log"
        where = (f"data.path={corpus / 'text.txt'}", f"data.cache_dir={corpus}")
        removed = ("RANK", "WORLD_SIZE", "CAME_FAULT", "CAME_FAULT_TEST")
        kept = {name: value for name, value in os.environ.items() if name not in removed}
        faults = {"CAME_FAULT": fault, "CAME_FAULT_TEST": "1"} if fault else {}
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *command, *TINY, *where, f"run.dir={run_dir}", *words],
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

    def kill(self) -> None:
        """End it and all that it has started, youngest first."""
        for pid in reversed(self.alive()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self, seconds: float = 240) -> Ended:
        """Wait for the end; fails if a process outlives it, or if a fault was not injected."""
        code = self.process.wait(timeout=seconds)
        ended = time.monotonic()
        output = self.output
        times = [float(found) for found in re.findall(r"^fault: .* at ([\d.]+) s$", output, re.M)]
        limit = time.monotonic() + 5
        while (alive := self.alive()) and time.monotonic() < limit:
            time.sleep(0.05)
        assert alive == [], f"left behind: {alive}\n{output}"
        seconds = ended - min(times, default=self.began)
        print(f"ended with {code}, {seconds:.1f} s after its {'fault' if times else 'start'}")
        return Ended(code, output, seconds)


def _environ(pid: int) -> dict[str, str]:
    try:
        if Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] == "Z":
            return {}
        parts = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(part.split("=", 1) for part in parts if "=" in part)


def commits(run_dir: Path) -> list[int]:
    """The committed steps, newest first."""
    names = [path.name for path in (run_dir / "checkpoints").glob("step-*")]
    return sorted((int(n.split("-")[1]) for n in names if "." not in n), reverse=True)


def state(run_dir: Path, step: int) -> dict[str, bytes]:
    """Every tensor of a commit as bytes, by name."""
    found = {}
    for path in sorted((run_dir / "checkpoints" / f"step-{step:08d}").glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            found |= {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    return found


def losses(run_dir: Path) -> dict[int, float]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines}
