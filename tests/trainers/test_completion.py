"""Tab completion in real shells: what a TAB offers, and how soon."""

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from trainers.completion import script
from trainers.flags import FLAGS

# What bash does at a TAB: the words so far, cut at = as its own setting has it.
TAB = """
source {script}
COMP_LINE={line!r}
COMP_POINT=${{#COMP_LINE}}
COMP_WORDS=($COMP_LINE)
compopt() {{ :; }}
_came
printf '%s\\n' "${{COMPREPLY[@]}}"
"""

SHELLS = {
    "bash": (["bash", "--norc", "-i"], "bind 'set show-all-if-ambiguous on'"),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit; compinit -u -D"),
}


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bash") / "came.bash"
    file.write_text(script("bash"))
    return file


def offered(bash: Path, line: str, folder: Path | None = None) -> list[str]:
    command = ["bash", "--norc", "-c", TAB.format(script=bash, line=line)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=20)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("came-train optimizer.l", ["optimizer.lr="]),
        ("came-train experiment=bert_large_8k zero.s", ["zero.stage="]),
        ("came-train optimizer=ad", ["adafactor", "adamw"]),
        ("came-train optimizer=came,ad", ["came,adafactor", "came,adamw"]),
        ("came-train optimizer=came,adamw,s", ["came,adamw,sm3"]),
        ("came-train optimizer=x,nothing", []),
        ("came-train zero.stage=0,", ["0,0", "0,1", "0,2", "0,3"]),
        ("came-train zero.stage=", ["0", "1", "2", "3"]),
        ("came-check data.lowercase=t", ["true"]),
        ("came-plan runtime.dtype=", ["bfloat16", "float32"]),
        ("came-plan objective.packing=", ["false", "null", "true"]),
        ("/usr/bin/came-train --mul", ["--multirun"]),
        ("came-check --", list(FLAGS["came-check"])),
        ("came-finetune task=sq", ["squad_v1", "squad_v2"]),
        ("came-finetune optimizer=", ["adamw", "came"]),
        ("came-finetune train.st", []),
        ("came-train optimizer.na", []),
        ("came-train nothing.like.it", []),
    ],
)
def test_what_bash_offers(bash: Path, line: str, words: list[str]) -> None:
    assert offered(bash, line) == words


def test_bash_offers_folders_where_a_key_is_a_path(bash: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "two").mkdir()
    assert offered(bash, "came-train run.dir=runs/", tmp_path) == ["runs/one", "runs/two"]
    assert offered(bash, "came-train eval.samples=runs/", tmp_path) == []
    (tmp_path / "s" / "lr=1,seed=0").mkdir(parents=True)  # as a sweep names it
    # Bash replaces what stands behind the last = alone.
    assert offered(bash, "came-train run.dir=s/lr=1", tmp_path) == ["1,seed=0"]


def test_a_tab_starts_no_python_and_takes_no_time(bash: Path) -> None:
    start = time.monotonic()
    offered(bash, "came-train model=b")
    assert time.monotonic() - start < 0.3  # with the start of bash; 0.01 s on an idle machine
    assert "python" not in script("bash") + script("zsh")


def test_every_choice_is_in_the_script() -> None:
    for shell in ("bash", "zsh"):
        text = script(shell)
        assert "model=bert_large" in text and "experiment=bert_large_32k" in text
        assert "launch.slurm.partition=" in text and "optimizer.name" not in text


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("came-train optimizer.l", ["optimizer.lr="]),
        ("came-train optimizer=ad", ["adafactor", "adamw"]),
        ("came-train optimizer=came,ad", ["adafactor", "adamw"]),
        ("came-train --mul", ["--multirun"]),
        ("came-finetune task=sq", ["squad_v1", "squad_v2"]),
        ("came-train run.dir=on", ["one_run/"]),
    ],
)
def test_a_person_presses_tab(shell: str, line: str, words: list[str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / "script").write_text(script("bash" if shell == "bash" else "zsh"))
    (tmp_path / "one_run").mkdir()
    command, setup = SHELLS[shell]
    shown = typed(command, f"{setup}; source ./script", line, words, tmp_path)
    assert all(word in shown for word in words), shown


def typed(command: list[str], setup: str, line: str, words: list[str], folder: Path) -> str:
    """What a terminal shows after `line` and TABs: with all of `words`, or after 10 s."""
    ours, theirs = pty.openpty()
    environ = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(folder), "PS1": "> "}
    shell = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environ
    )
    try:
        os.write(ours, f"{setup}; echo REA''DY\n".encode())
        read_until(ours, ["READY"])
        os.write(ours, (line + "\t" * len(words)).encode())
        return read_until(ours, words)
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)
        os.close(theirs)


def read_until(terminal: int, words: list[str]) -> str:
    shown, deadline = "", time.monotonic() + 10
    while time.monotonic() < deadline and not all(word in shown for word in words):
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown
