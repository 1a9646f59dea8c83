"""Signals are noted at once, obeyed later, and bounded: each in a process of its own, no torch."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HEAD = """
import sys, time
from trainers.signals import listener
listener.listen()
listener.grace = {grace}
print("ready", flush=True)
"""
# As inside a collective: the main thread is in C and runs no Python handlers.
DEAF = """
import ctypes
lock = ctypes.create_string_buffer(64)
for _ in range(2): ctypes.CDLL(None).pthread_mutex_lock(lock)
"""
POLITE = """
while not listener.signum: time.sleep(0.01)
print("told", listener.signum, flush=True)
"""


def start(body: str, grace: float = 30.0, head: str = HEAD) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", head.format(grace=grace) + body],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_noted_and_ends_nothing(signum: int) -> None:
    process = start(POLITE + "sys.exit(4)")
    process.send_signal(signum)
    assert process.communicate(timeout=20)[0] == f"told {int(signum)}\n"
    assert process.returncode == 4


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_one_ends_it_at_once_also_inside_a_collective(first: int) -> None:
    process = start(DEAF)
    process.send_signal(first)
    time.sleep(1.5)
    assert process.poll() is None
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert time.monotonic() - begin < 5


def test_the_echo_of_a_signal_is_no_second_one() -> None:
    """Schedulers signal every process, and a launcher passes its own on to its children."""
    process = start(POLITE + "time.sleep(2); sys.exit(4)")
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert process.wait(timeout=20) == 4


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_who_does_not_come_to_an_end_is_ended_within_the_grace(signum: int, code: int) -> None:
    process = start(DEAF, grace=0.5)
    begin = time.monotonic()
    process.send_signal(signum)
    assert process.wait(timeout=20) == code
    assert time.monotonic() - begin < 10
    assert process.stderr is not None
    assert "not done after runtime.grace_seconds=0.5" in process.stderr.read()


RAISING = """
import sys, time
from trainers.failures import report
from trainers.signals import listener
listener.grace = {grace}
try:
    listener.listen(raises=True)
    print("ready", flush=True)
    time.sleep(60)
except BaseException as error:
    code = report(error, None, verbose=False)
    time.sleep({cleanup})
    sys.exit(code)
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize(("grace", "cleanup"), [(30, 0.5), (0.5, 60)])
def test_the_launcher_raises_the_first_and_its_end_is_bounded(
    signum: int, code: int, grace: float, cleanup: float
) -> None:
    """Workers that prepare the data finish their task first, however long it is."""
    process = start("", head=RAISING.format(grace=grace, cleanup=cleanup))
    begin = time.monotonic()
    for _ in range(2):  # an echo interrupts nothing
        process.send_signal(signum)
        time.sleep(0.05)
    assert process.wait(timeout=20) == code
    assert time.monotonic() - begin < 10
    assert process.stderr is not None
    words = process.stderr.read()
    assert ("stopped before the first step" in words) == (signum == signal.SIGTERM)
    assert ("not done after runtime.grace_seconds" in words) == (cleanup > grace)


def test_who_has_saved_is_not_ended_by_another_signal() -> None:
    process = start(POLITE + "listener.leaving(); time.sleep(3); sys.exit(75)")
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
