"""Ranks of a few lines of Python each: who is blamed, who is ended, and that nobody is left."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.local import Outcome, run_alone, run_local

REPOSITORY = Path(__file__).resolve().parents[2]
HEAD = "import os, sys, time, signal, pathlib; rank = int(os.environ['RANK'])\n"


def launch(body: str, processes: int = 2, *, grace: float = 0.5, threads: int = 0) -> Outcome:
    return run_local([sys.executable, "-c", HEAD + body], processes, threads, grace=grace)


def exists(pid: int) -> bool:
    """A zombie that nobody has reaped yet does not run any more and does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float = 10.0) -> bool:
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    return bool(condition())


def test_each_rank_is_told_its_place(tmp_path):
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS MASTER_PORT"
    body = (
        f"seen = [os.environ[name] for name in {names.split()}]\n"
        f"pathlib.Path({str(tmp_path)!r}, str(rank)).write_text(' '.join(seen))"
    )
    assert launch(body, 3, threads=5) == Outcome(0)
    ranks = [(tmp_path / str(rank)).read_text().rsplit(" ", 1) for rank in range(3)]
    assert [place for place, _ in ranks] == [f"{rank} {rank} 3 3 127.0.0.1 5" for rank in range(3)]
    assert len({port for _, port in ranks}) == 1


def test_the_code_of_the_failed_rank_is_the_code_of_the_run():
    assert launch("sys.exit(3 if rank == 1 else 0)") == Outcome(3, rank=1)


def test_a_lost_peer_is_not_the_cause():
    """Rank 0 sees that rank 1 is gone and ends first; the reason is what rank 1 says later."""
    body = "time.sleep(0.3) if rank == 1 else None; sys.exit(3 if rank == 1 else 7)"
    assert launch(body, grace=5) == Outcome(3, rank=1)


def test_a_lost_peer_is_the_cause_where_the_other_rank_just_hangs():
    body = "sys.exit(7) if rank == 0 else time.sleep(60)"
    assert launch(body, grace=0.2) == Outcome(7, rank=0)


def test_a_killed_rank_is_named_with_its_signal():
    body = "os.kill(os.getpid(), 9) if rank == 1 else sys.exit(7)"
    assert launch(body) == Outcome(137, rank=1, signum=signal.SIGKILL)


def test_a_rank_that_ignores_sigterm_is_ended_too(tmp_path):
    pid_file = tmp_path / "pid"
    body = (
        "if rank == 1:\n"
        f"    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"    pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        f"while not os.path.exists({str(pid_file)!r}): time.sleep(0.01)\n"
        "sys.exit(2)"
    )
    start = time.monotonic()
    assert launch(body, grace=0.3) == Outcome(2, rank=0)
    assert time.monotonic() - start < 10
    assert not exists(int(pid_file.read_text()))


def test_helpers_of_a_dead_rank_are_ended(tmp_path):
    pid_file = tmp_path / "pid"
    body = (
        "import subprocess\n"
        "helper = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(helper.pid))\n"
        "os._exit(4)"
    )
    assert launch(body, 1) == Outcome(4, rank=0)
    assert wait_for(lambda: not exists(int(pid_file.read_text())))


LAUNCHER = """
import sys
from launch.local import run_local
command, patience = [sys.executable, "-c", sys.argv[1]], float(sys.argv[2])
sys.exit(run_local(command, 2, grace=1.0, patience=patience).exit_code)
"""


FOLLOW = (
    "from launch.local import die_with_launcher, hear_requests; "
    "die_with_launcher(); hear_requests()\n"
)


@contextlib.contextmanager
def launcher(tmp_path, body: str, patience: float = 5.0, follow: str = FOLLOW):
    """A launcher in a process of its own, and its ranks' pids once both have written them."""
    write = f"pathlib.Path({str(tmp_path)!r}, str(rank)).write_text(str(os.getpid()))\n"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            LAUNCHER,
            HEAD + follow + body.replace("READY", write),
            str(patience),
        ],
        cwd=REPOSITORY,
    )
    files = [tmp_path / "0", tmp_path / "1"]
    pids: list[int] = []
    try:
        assert wait_for(lambda: all(file.exists() and file.read_text() for file in files))
        pids += [int(file.read_text()) for file in files]
        yield process, pids
    finally:
        for pid in (process.pid, *pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
def test_a_signal_is_passed_on_and_the_ranks_say_with_which_code(tmp_path, signum, code):
    body = (
        "def note(*_):\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'told{{rank}}').touch(); sys.exit({code})\n"
        f"signal.signal({int(signum)}, note)\n"
        "READY"
        "while True: time.sleep(0.05)"
    )
    with launcher(tmp_path, body) as (process, pids):
        process.send_signal(signum)
        assert process.wait(timeout=10) == code
        assert (tmp_path / "told0").exists() and (tmp_path / "told1").exists()
        assert not any(exists(pid) for pid in pids)


def test_ranks_that_are_told_have_more_time_than_those_of_a_lost_peer(tmp_path):
    """The launcher ended a rank that was still saving, because another had saved and left."""
    body = (
        "def leave(*_):\n"
        "    time.sleep(3 * rank)\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'saved{{rank}}').touch(); os._exit(75)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "READY"
        "while True: time.sleep(0.05)"
    )
    with launcher(tmp_path, body, patience=20.0) as (process, pids):
        os.kill(pids[0], signal.SIGTERM)
        os.kill(pids[1], signal.SIGTERM)
        assert process.wait(timeout=20) == 75
        assert (tmp_path / "saved1").exists()
        assert not any(exists(pid) for pid in pids)


DEAF = "".join(
    f"signal.signal({int(signum)}, signal.SIG_IGN)\n"
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_ranks_that_take_their_time(tmp_path, signum, code):
    with launcher(tmp_path, DEAF + "READY" + "time.sleep(60)", patience=30.0) as (process, pids):
        process.send_signal(signum)
        time.sleep(1.3)
        process.send_signal(signum)
        assert process.wait(timeout=10) == code
        assert not any(exists(pid) for pid in pids)


def test_the_echo_of_a_signal_ends_no_rank_in_the_middle_of_its_save(tmp_path):
    """Schedulers, wrappers and `timeout` signal twice."""
    body = (
        "def save(*_):\n"
        "    time.sleep(1.5)\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'saved{{rank}}').touch(); os._exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "READY"
        "while True: time.sleep(0.05)"
    )
    with launcher(tmp_path, body, patience=20.0) as (process, _):
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        assert process.wait(timeout=20) == 75
        assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
def test_ranks_that_die_of_a_single_request_leave_its_code(tmp_path, signum, code):
    """A scheduler that requeues on 75 must not miss them."""
    body = f"signal.signal({int(signum)}, signal.SIG_DFL)\nREADYtime.sleep(60)"
    with launcher(tmp_path, body) as (process, pids):
        process.send_signal(signum)
        assert process.wait(timeout=10) == code
        assert not any(exists(pid) for pid in pids)


def test_a_request_before_the_ranks_are_ready_for_it_is_kept_for_them(tmp_path):
    body = (
        f"pathlib.Path({str(tmp_path)!r}, str(rank)).write_text(str(os.getpid()))\n"
        "time.sleep(1)\n"  # as long as imports take
        "from trainers.signals import listener; listener.listen()\n"
        "while not listener.signum: time.sleep(0.01)\n"
        f"pathlib.Path({str(tmp_path)!r}, f'told{{rank}}').touch(); sys.exit(75)"
    )
    with launcher(tmp_path, body, follow="") as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 75
        assert (tmp_path / "told0").exists() and (tmp_path / "told1").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is asked for on Linux only")
def test_a_launcher_killed_with_9_leaves_no_ranks(tmp_path):
    with launcher(tmp_path, "READYtime.sleep(60)") as (process, pids):
        process.kill()
        assert wait_for(lambda: not any(exists(pid) for pid in pids))


@pytest.mark.parametrize("code", [0, 1, 75])
def test_another_launcher_that_was_told_to_stop_has_been_stopped(code: int) -> None:
    """torchrun ends with 1 whatever it was told."""
    child = f"""
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(30)
"""
    outcome = run_alone([sys.executable, "-c", child], patience=10)
    assert (outcome.exit_code, outcome.signum) == (75 if code else 0, signal.SIGTERM)
    assert outcome.rank is None
