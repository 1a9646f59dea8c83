"""What a person sees, and that nobody has to be looking."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.run.console import Console, duration

ROOT = Path(__file__).parents[3]
NUMBERS = {
    "step": 20,
    "train/loss": 5.43214,
    "train/lr": 3e-4,
    "train/tokens_per_second": 41234.5,
    "train/seconds": 0.05,
    "eval/loss": 5.5,
    "eval/mlm_accuracy": 0.171,
    "eval/commonest_token_accuracy": 0.062,
}
SCRIPT = f"""
from trainers.run.console import Console
console = Console(100, 0)
for step in range(20, 101, 20):
    console.log({NUMBERS} | {{"step": step}})
console.close()
"""


def test_one_plain_line_per_log_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(100, resume_step=0)
    console.log(NUMBERS)
    console.log({"step": 100, "train/loss": None})
    console.close()
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "step  20/100  loss 5.4321  lr 3.00e-04  41.2k tokens/s  "
        "held out 5.5000  accuracy 17.1%  (commonest token 6.2%)  0:00:0"
    )
    assert last.startswith("step 100/100  loss nan")


def test_a_slow_beginning_does_not_count_for_ever() -> None:
    """The mean since the start once told of hours that a compilation in the first step had made."""
    console = Console(1000, resume_step=100)
    begin = console._marks[0][0]
    left = [console._remaining(101, begin + 600)]
    left += [console._remaining(step, begin + 600 + step - 101) for step in (111, 121, 131)]
    assert left[0] == f"  {duration(600 * 899)} left"
    assert left[1:] == [f"  {duration(1000 - step)} left" for step in (111, 121, 131)]
    later = begin + 630
    told = [console._remaining(131 + 10 * n, later + 20 * n) for n in range(1, 12)]
    assert told[-1] == f"  {duration(2 * (1000 - 241))} left", "only the last ten logs count"


def test_a_bar_on_a_terminal() -> None:
    ours, theirs = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, stdout=theirs
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal hangs up when the process ends
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert process.wait(timeout=30) == 0
    text = shown.decode()
    assert "100/100" in text and "\u2501" in text, "no bar was drawn"
    assert "step 20  held out 5.5000" in text


@pytest.mark.parametrize("reader", ["gone", "closed", "full"])
def test_a_lost_reader_does_not_fail_the_run(reader: str) -> None:
    script = SCRIPT
    stdout: int | None = None
    if reader == "gone":
        ours, stdout = os.pipe()
        os.close(ours)
    elif reader == "full":
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        script = "import sys; sys.stdout.close()\n" + SCRIPT
    process = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    if stdout is not None:
        os.close(stdout)
    assert (process.returncode, process.stderr) == (0, "")
