"""What a process says when it ends, and the code it ends with."""

import errno
import json
import signal

import pytest
import torch

from launch.local import Outcome
from trainers.errors import ConfigError, DataError, MemoryLimitError, PeerLostError, StorageError
from trainers.failures import explain, report, report_outcome


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
