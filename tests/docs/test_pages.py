"""Every command of the pages runs, in the order of its page, in a folder that is thrown away.

Runs are made short by words at their end, and what a reader brings (texts, a second machine, a
queue) has a stand-in.  What cannot run here is in `NOT_HERE`, with the reason.
"""

import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from came import bind, telemetry
from launch.local import free_port
from tests.commands import REPOSITORY, blocks, commands, environment, run_here, two_jobs
from tests.docs.stand_ins import make_files, make_programs
from tests.faults.test_nodes import answers
from tests.ranks import run_ranks

pytestmark = pytest.mark.docs

PAGES = [
    page
    for page in sorted((REPOSITORY / "docs").rglob("*.md"))
    if commands(page.read_text(encoding="utf-8"))
]
NOT_HERE = {
    "docker": "there is no daemon of docker, and the image is gigabytes",
    "pip": "nothing is installed while tests run",
    "source": "the environment of the tests is active",
    "tensorboard": "it serves until it is ended",
    "wandb login": "asks for the key of an account",
    "wandb sweep": "asks W&B's server",
    "cd": "`wandb sync` sends what offline mode wrote to W&B's server",
    "data=hub": "the hub cannot be reached; tests/trainers/data/test_hub.py has a stand-in for it",
    "launch=kubernetes launch.submit=true": "there is no cluster for kubectl",
}
STANDS_FOR = {"make quickstart": "came-train experiment=quickstart", "/data/text": "text/"}
# What a page takes from an earlier one.
BEFORE = {
    "follow.md": ["came-train experiment=quickstart"],
    "finetuning.md": ["came-train experiment=quickstart"],
}
TEXT = ("data=text", "data.path=my_texts/")
SMALL = (
    *("model=bert_tiny", "batch.global_size=16", "batch.micro_size=4", "eval.every=1"),
    *("eval.samples=16", "train.log_every=1", "launch.processes=2", "launch.gpus_per_node=0"),
)
FINE = ("seeds=1", "epochs=1", "max_length=32", "stride=8", "threads=1")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    before = [shlex.split(line) for line in BEFORE.get(page.name, ())]
    for words in [*before, *commands(page.read_text(encoding="utf-8"))]:
        reader.run(words)


def sharded_by_rows(snippet: str) -> None:
    """Two ranks do what the page does, with a model that is theirs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    names = {"model": model, "batch": torch.ones(4, 6)}
    exec(snippet, names)
    rules = {row.shape: row.rule for row in bind(names["optimizer"]).rows}
    assert rules == {(7, 6): "factored", (7,): "vector", (3, 7): "factored", (3,): "vector"}
    (group,) = telemetry(names["optimizer"])
    assert group.confidence_spread > 0 and group.nonfinite == ()


def test_the_snippet_that_asks_whether_it_is_still_came() -> None:
    (snippet,) = blocks((REPOSITORY / "docs" / "howto.md").read_text("utf-8"), "python")
    run_ranks(sharded_by_rows, 2, snippet)


class Reader:
    """Somebody with texts, a folder, and no patience."""

    def __init__(self, place: Path) -> None:
        self.folder = place / "here"
        self.folder.mkdir()
        make_files(self.folder)
        make_programs(place / "bin")
        self.environ = environment(OMP_NUM_THREADS="1")
        self.environ["PATH"] = f"{place / 'bin'}:{self.environ['PATH']}"
        (self.folder / "scripts").symlink_to(REPOSITORY / "scripts")

    def run(self, words: list[str]) -> None:
        """A command of a page, made short; nothing if it cannot run here."""
        line = shlex.join(words)
        for what, here in STANDS_FOR.items():
            line = line.replace(what, here)
        words = shlex.split(line)
        if reason := why_not(words):
            print(f"not here: {line}: {reason}")
            return
        if words[0] == "came-train" and "launch.submit=true" in words:
            self._do(words)
            if "--multirun" not in words:  # what the queue would run, when it is its turn
                self._do(short([w for w in words if not w.startswith(("launch.", "launch="))]))
        elif "launch=torchrun" in words:
            self._two_machines(short(words))
        else:
            self._do(short(words))

    def _do(self, words: Sequence[str]) -> None:
        print(f"$ {shlex.join(words)}", flush=True)
        print(run_here(words, self.folder, self.environ, seconds=1200))

    def _two_machines(self, words: list[str]) -> None:
        port = free_port()
        meet = f"launch.torchrun.rendezvous=127.0.0.1:{port}"
        words = [*words, meet, "launch.processes=1"]
        print(f"$ {shlex.join(words)}, twice", flush=True)
        machines = []
        try:
            for _ in range(2):
                machines.append(subprocess.Popen(words, cwd=self.folder, env=self.environ))
                while not answers(port):  # the first is where they meet
                    assert machines[0].poll() is None
                    time.sleep(0.05)
            assert [machine.wait(600) for machine in machines] == [0, 0]
        finally:
            for machine in machines:
                machine.kill()


def why_not(words: Sequence[str]) -> str | None:
    """The reason why a command cannot run here."""
    parts = set(words)
    return next((why for what, why in NOT_HERE.items() if parts.issuperset(what.split())), None)


def short(words: list[str]) -> list[str]:
    """The same command in seconds."""
    if words[0] == "came-finetune":
        return [*words, *FINE]
    if words[0] not in ("came-train", "came-prepare", "came-check"):
        return words
    given = dict(word.partition("=")[::2] for word in words)
    if given.get("launch") in ("slurm", "kubernetes"):  # printed, which takes no time
        return words
    if "--multirun" in words:
        words = two_jobs(words)
    more = ["data.cache_dir=cache/", *(() if "data" in given else TEXT)]
    more += [] if "data.vocab_size" in given else ["data.vocab_size=300"]
    if words[0] == "came-prepare":
        return [*words, *more]
    steps = int(given.get("train.steps", 0)) // 10  # some go on where others have stopped
    more += [f"train.steps={min(max(steps, 2), 4)}", "eval.samples=16"]
    if given.get("logging") == "wandb":  # whoever tests may have an account
        more += ["logging.mode=offline"]
    if "launch.deepspeed.hosts" in given:
        more += ["launch.dry_run=true"]
    if not given.get("experiment", "quickstart").startswith("quickstart"):
        more += SMALL
    return [*words, *more]
