"""`came-train`: pretrains what its words ask for. Outside are words, inside are typed objects.

    came-train a=b ...                     launcher: check everything, prepare the data, start ranks
    torchrun -m trainers.pretrain a=b ...  rank (RANK is in the environment): check, and train

Both read the same words, so any launcher that sets torch's usual environment will do.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from textwrap import fill

from launch.local import Outcome, die_with_launcher, run_alone, run_local
from launch.spec import Job
from launch.start import QUEUED, hand_over, is_dry, start_of, write_files
from trainers.compose import CONFIGS, LEAVES, choices, compose
from trainers.config import Config
from trainers.errors import ConfigError, RunError, StorageError
from trainers.failures import discard, report, report_outcome
from trainers.faults import parse
from trainers.flags import FLAGS
from trainers.redact import redact_logs
from trainers.signals import listener
from trainers.sweep import SweptJob, read_sweep, run_sweep, titles

HELP = """\
came-train NAME=VALUE ...   pretrains BERT, GPT-2, T5 and LLaMA under DeepSpeed

  a BERT in three minutes, on all GPUs or two processes of a CPU:
    came-train experiment=quickstart
  your own text, a file or a folder:
    came-train experiment=quickstart data=text data.path=my_texts/
  resume: the same command once more, or one with the same run.dir=FOLDER
  sweep, one run after the other:
    came-train experiment=quickstart --multirun optimizer.lr=1e-4,3e-4,1e-3
  cluster; prints the batch script, launch.submit=true queues it:
    came-train experiment=bert_large_32k data.path=DIR launch=slurm \\
               launch.nodes=4 launch.gpus_per_node=8

--choices  models, optimizers, data and all else that is chosen by name
--keys     every key; docs/reference.md has units, defaults and limits
--completion bash|zsh   prints a script for tab completion
--traceback             (or CAME_TRACEBACK=1) shows where errors arise
Also: came-status (where runs are), came-check, -plan, -prepare, -eval,
-export, -report, -checkpoint, -finetune; each has --help. Exit codes: 0 done,
2 configuration, 3 data, 4 checkpoint, 5 not a number, 6 storage, 7 peer lost,
8 memory, 9 run.dir in use, 75 stopped by a signal and saved (130: Ctrl-C);
again goes on from there."""


# Seconds that the launcher waits longer for a rank than the rank itself takes.
LATER = 3.0

# What a rank runs. `-m` would look for `trainers` in the folder that the user stands in.
START = f"""\
import sys
sys.argv[0], sys.path[0] = "came-train", {str(Path(__file__).resolve().parents[1])!r}
from trainers.pretrain import main
main()"""


@dataclass
class CommandLine:
    """The words of a command, sorted."""

    overrides: list[str] = field(default_factory=list)
    help: bool = False
    keys: bool = False
    choices: bool = False
    completion: str | None = None  # for which shell
    multirun: bool = False
    traceback: bool = False

    @property
    def flags(self) -> list[str]:
        """What processes that are started have to be told beside the overrides."""
        return ["--traceback"] if self.traceback else []


def read(words: Sequence[str], environ: Mapping[str, str]) -> CommandLine:
    """Sorts the words of a command; a word that is nothing else is an override."""
    line, rest = CommandLine(traceback=environ.get("CAME_TRACEBACK") == "1"), list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            line.help = True
        elif word == "--keys":
            line.keys = True
        elif word == "--choices":
            line.choices = True
        elif word == "--completion" or word.startswith("--completion="):
            line.completion = word.partition("=")[2] or (rest.pop(0) if rest else "")
        elif word in ("-m", "--multirun"):
            line.multirun = True
        elif word == "--traceback":
            line.traceback = True
        elif word in (
            "--local_rank",
            "--local-rank",
        ):  # the deepspeed launcher's; see LOCAL_RANK
            del rest[:1]
        elif not word.startswith(("--local_rank=", "--local-rank=")):
            line.overrides.append(word)
    return line


def main() -> None:
    """Runs the words of the command line and ends the process with the exit code of the run."""
    die_with_launcher()
    _have_streams()
    redact_logs()
    line = read(sys.argv[1:], os.environ)
    is_answer = line.help or line.keys or line.choices or line.completion is not None
    rank = None
    try:
        parse(os.environ)
        rank = _number_of("RANK")
        if is_answer:
            print(_answer(line), flush=True)
            code = 0
        else:
            code = _launch(line) if rank is None else _train(line)
    except (Exception, KeyboardInterrupt) as error:
        # What is wrong with configuration or data is wrong on every rank: one of them says so.
        everywhere = isinstance(error, RunError) and error.everywhere
        words = not (everywhere and int(os.environ.get("LOCAL_RANK", rank or 0)))
        code = report(error, rank, verbose=line.traceback, words=words, quiet=is_answer)
    try:
        sys.stdout.flush()
    except OSError:  # nobody may be reading any more
        discard(sys.stdout)
    if rank is not None:
        # Exit handlers of a process group may wait for a dead member forever, and what an engine
        # keeps alive of the group in reference cycles aborts the interpreter at its end.
        os._exit(code)
    sys.exit(code)


def _have_streams() -> None:
    """Standard streams may be closed; what is written to them then goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends


def _number_of(name: str) -> int | None:
    """A whole number that a launcher put into the environment; None if it is not there."""
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise ConfigError(f"the environment has {name}={text!r}: it must be a whole number")
    return int(text) if text is not None else None


def _launch(line: CommandLine) -> int:
    """Everything that can be refused is refused here, once, before there are ranks."""
    listener.listen(raises=True)
    if line.multirun:
        return _sweep(line)
    config = compose(line.overrides, flags=FLAGS["came-train"])
    if config.launch.dry_run or config.launch.name != "local":
        return _start(job_of([*line.overrides, *line.flags], config))
    listener.grace = config.runtime.grace_seconds
    from trainers.data.splits import look_for_text, open_phases
    from trainers.run.ended import note_outcome, recorded
    from trainers.run.folder import check

    if not os.path.exists(config.run.dir):
        look_for_text(config)  # a typing mistake leaves no folder behind
    with recorded(config.run.dir, None):
        check(config.run.dir)
        open_phases(config)
    command = [sys.executable, "-c", START, *line.flags, *line.overrides]
    listener.hand_over()
    outcome = run_local(
        command,
        config.launch.processes,
        config.runtime.threads,
        patience=config.runtime.grace_seconds + LATER,
    )
    listener.leaving()
    report_outcome(outcome)
    note_outcome(config.run.dir, outcome)
    return outcome.exit_code


def job_of(words: Sequence[str], config: Config) -> Job:
    """What is started for a command; how it is started is nothing that ranks need to hear."""
    launch = config.launch
    return Job(
        tuple(word for word in words if not word.lstrip("+").startswith(("launch=", "launch."))),
        config.run.dir,
        launch,
        launch.processes // launch.nodes,
        config.runtime.threads,
        config.runtime.grace_seconds + LATER,
    )


def _sweep(line: CommandLine) -> int:
    """One job for each combination of values: here one after another, or all into a queue."""
    sweep = read_sweep(line.overrides, FLAGS["came-train"])
    jobs = {swept.name: job_of([*swept.words, *line.flags], swept.config) for swept in sweep.jobs}
    if any(is_dry(job) or job.launch.name in QUEUED for job in jobs.values()):
        codes = []
        for title, swept in titles(sweep):
            print(title, flush=True)
            codes.append(_start(jobs[swept.name]))
        return next(filter(None, codes), 0)

    def start(swept: SweptJob) -> Outcome:
        command = [sys.executable, "-c", START, *line.flags, *swept.words]
        return run_alone(command, patience=jobs[swept.name].patience + LATER)

    listener.hand_over()
    return run_sweep(sweep, start, partial(print, flush=True))


def _start(job: Job) -> int:
    """Shows or hands over what starts the ranks, on this machine or elsewhere."""
    if job.launch.name == "local":
        print(f"{job.processes} times, on this machine: {shlex.join(job.command())}")
        return 0
    try:
        start = start_of(job)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if is_dry(job):
        print(start.text())
        return 0
    try:
        write_files(start)
    except OSError as error:
        raise StorageError(f"{error.filename} cannot be written: {error.strerror}") from error
    listener.hand_over()
    try:
        return hand_over(start, queued=job.launch.name in QUEUED)
    except FileNotFoundError as error:
        raise ConfigError(
            f"launch={job.launch.name} needs the program {start.command[0]}, which is not on this "
            "machine; launch.dry_run=true prints what would be run"
        ) from error


def _train(line: CommandLine) -> int:
    listener.listen()
    if line.multirun:
        raise ConfigError("--multirun starts the ranks of its jobs itself: came-train --multirun")
    world_size = _number_of("WORLD_SIZE")
    if not world_size:
        raise ConfigError("the environment sets RANK but no WORLD_SIZE: set both or none")
    config = compose(line.overrides, world_size)
    listener.grace = config.runtime.grace_seconds
    from trainers.run.ended import recorded
    from trainers.run.loop import run

    with recorded(config.run.dir, _number_of("RANK")):
        run(config)
    return 0


def _answer(line: CommandLine) -> str:
    """What is told instead of a run."""
    if line.completion is not None:
        from trainers.completion import SHELLS, script

        if line.completion not in SHELLS:
            raise ConfigError(f"--completion {line.completion or '?'}: for bash or zsh")
        return script(line.completion)
    if line.keys:
        return "\n".join(_keys())
    if line.choices:
        names = [_line(group, ", ".join(names)) for group, names in choices().items()]
        return "\n".join([f"files in {CONFIGS}, with their reasons:", *names])
    return HELP


def _keys() -> Iterator[str]:
    sections: dict[str, list[str]] = {}
    for key in LEAVES:
        section, _, name = key.partition(".")
        if name and name != "name":  # a name is set by choosing a file
            sections.setdefault(section, []).append(name)
    for section, names in sections.items():
        yield _line(section, " ".join(names))
    yield _line("deepspeed", "any other key of DeepSpeed's config")


def _line(name: str, words: str) -> str:
    return fill(f"  {name:<12} {words}", width=100, subsequent_indent=15 * " ")


if __name__ == "__main__":
    main()
