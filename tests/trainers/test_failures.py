"""What a process says when it ends, and the code it ends with."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch.local import Outcome
from trainers.errors import ConfigError, DataError, MemoryLimitError, PeerLostError, StorageError
from trainers.failures import READER_GONE, explain, report, report_outcome

ROOT = Path(__file__).parents[2]
SPEAKS = "import sys; from trainers.failures import ends_with_reader as main, report; "


def without_reader(*words: str) -> tuple[int, str]:
    """Code and words of a Python whose stdout is a pipe that nobody reads."""
    ours, stdout = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        # Empty is unset: as most have it, what is printed is kept until there is more of it.
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(stdout)
    return done.returncode, done.stderr


def test_a_known_error_is_one_message_and_one_json_line(capsys):
    assert report(DataError("no text in a.txt"), 1, verbose=False) == 3
    message, record = capsys.readouterr().err.splitlines()
    assert message == "error: no text in a.txt"
    expected = {"reason": "no text in a.txt", "rank": 1, "step": None, "exit_code": 3}
    assert json.loads(record) == expected


def test_the_step_is_told_where_it_is_known(capsys):
    error = ConfigError("bad")
    error.step = 12
    report(error, None, verbose=False)
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["step"] == 12


def test_a_traceback_is_shown_when_asked_for_and_for_bugs(capsys):
    report(ConfigError("bad"), None, verbose=True)
    assert "Traceback" not in capsys.readouterr().err  # it was never raised: there is none to show
    try:
        raise KeyError("bug")
    except KeyError as error:
        assert report(error, 0, verbose=False) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_rank_can_leave_the_words_to_another(capsys):
    assert report(ConfigError("bad"), 1, verbose=False, words=False) == 2
    assert capsys.readouterr().err == ""


def test_ctrl_c_needs_no_words(capsys):
    assert report(KeyboardInterrupt(), 0, verbose=False) == 130
    assert capsys.readouterr().err == ""


def test_a_secret_in_a_message_is_not_repeated(capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "canary-0123456789")
    report(DataError("cannot read https://me:canary-0123456789@host/"), 0, verbose=False)
    assert "canary" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), MemoryLimitError),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryLimitError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryLimitError),
        (
            RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
            PeerLostError,
        ),
        (torch.distributed.DistNetworkError("EADDRINUSE"), PeerLostError),
        (OSError(errno.ENOSPC, "No space left on device", "x"), StorageError),
    ],
)
def test_errors_of_the_machine_are_recognised(error, kind):
    explained = explain(error)
    assert type(explained) is kind
    assert str(explained)


def test_what_gloo_says_is_cut_to_what_happened():
    error = RuntimeError(
        "[/build/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:42199: Connection reset by "
        "peer. This is typically caused by a remote worker hanging or bugs in the application."
    )
    words = "(Read error [127.0.0.1]:42199: Connection reset by peer.)"
    assert str(explain(error)) == f"another rank died or did not answer {words}"


def test_a_bug_is_not_explained_away():
    assert explain(ValueError("x")) is None
    assert explain(FileNotFoundError(errno.ENOENT, "x")) is None
    assert explain(FileNotFoundError(errno.ENOENT, "x", "/home/gloo/text.txt")) is None
    assert explain(RuntimeError("/home/igloo/text.txt has no line")) is None


def test_a_killed_rank_is_spoken_for(capsys):
    report_outcome(Outcome(137, rank=1, signum=signal.SIGKILL))
    message, record = capsys.readouterr().err.splitlines()
    assert message.startswith("error: rank 1 was killed by SIGKILL")
    assert json.loads(record)["exit_code"] == 137


def test_a_rank_that_spoke_is_not_spoken_for(capsys):
    report_outcome(Outcome(3, rank=1))
    report_outcome(Outcome(0))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words",
    [
        ("trainers.plan", "experiment=quickstart", "--json"),
        ("trainers.finetune", "--table", "docs/finetuning/mrpc/pretrained_came"),
        ("trainers.status", "--json", "docs"),
        ("trainers.report", "--help"),
        ("trainers.check", "--help"),
        ("trainers.prepare", "--help"),
        ("trainers.checkpoint_command", "--help"),
        ("trainers.pretrain", "--help"),
        ("trainers.pretrain", "--completion", "bash"),
    ],
    ids=" ".join,
)
def test_a_command_whose_reader_has_gone_ends_quietly(words: tuple[str, ...]) -> None:
    """`came-plan ... --json | head` ended with a traceback."""
    assert without_reader("-m", *words) == (READER_GONE, "")


def test_every_command_ends_with_its_reader() -> None:
    """But came-train, whose run goes on: its `main` does it for answers alone."""
    scripts = re.findall(r'"trainers\.(\w+):main"', (ROOT / "pyproject.toml").read_text())
    assert {"plan", "pretrain"} < set(scripts)
    for name in {*scripts} - {"pretrain"}:
        source = (ROOT / "trainers" / f"{name}.py").read_text()
        assert "\n@ends_with_reader\ndef main(" in source, name


def test_what_is_told_for_a_run_without_a_reader_is_told() -> None:
    code = "sys.exit(report(BrokenPipeError(32, 'x'), None, verbose=False, quiet=False))"
    ended, words = without_reader("-c", SPEAKS + code)
    assert (ended, "error: BrokenPipeError" in words) == (1, True)


def test_another_pipe_than_stdout_is_a_failure(capsys) -> None:
    assert report(BrokenPipeError(errno.EPIPE, "worker"), None, verbose=False) == 1
    assert "error: BrokenPipeError" in capsys.readouterr().err


def test_a_full_disk_below_stdout_is_told() -> None:
    script = SPEAKS + "main(lambda: print(1))()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr.count("\n")) == (6, 2)
    assert "error: cannot write: [Errno 28]" in done.stderr


def test_a_command_without_stdout_is_none_the_worse() -> None:
    script = SPEAKS + "sys.stdout = None; main(lambda: print(1))()"
    assert without_reader("-c", script) == (0, "")


@pytest.mark.parametrize(
    "script",
    [
        "report(DataError('no text'), None, verbose=False); sys.exit(3)",
        "say('a'); step('b').__enter__(); say('c'); sys.exit(3)",
    ],
)
def test_a_stderr_that_nobody_reads_changes_no_exit_code(script: str) -> None:
    """A preparation ended with it: what had not been written failed again at rich's next flush."""
    imports = "from trainers.data.progress import say, step; from trainers.errors import DataError"
    script = f"import os; os.dup2(1, 2); {SPEAKS}{imports}; {script}"
    assert without_reader("-c", script) == (3, "")
