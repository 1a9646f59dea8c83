"""Weights & Biases as a mirror of metrics.jsonl: never needed, never fatal, never waited.

A run folder is one W&B run, and W&B's step is ours.  A start that resumes rewinds it to the step of
the commit (offline that is noted, and done by `wandb sync`); where a server does not rewind, it
goes on, and keeps what it has of the steps that are trained again.
"""

import json
import logging
import netrc
import os
import re
import secrets
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trainers import durable, fidelity
from trainers.redact import redact, redact_text
from trainers.regular import read_regular
from trainers.run.console import tell
from trainers.run.folder import LEDGER_FILE
from trainers.run.mirrors import History

if TYPE_CHECKING:
    from trainers.config import Config

logger = logging.getLogger(__name__)

ID_FILE = "wandb_id"
_ANSWER_SECONDS = 3.0
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 60.0
_HURRIED_SECONDS = 1.0  # while an error waits to be told
_DEFAULT_URL = "https://api.wandb.ai"


class WandbMirror:
    """One W&B run per run folder, from rank 0; after the first failure it says so and stays off.

    Everything is queued for a thread: W&B may be slow to start, to take a row and to answer.
    """

    def __init__(self, folder: Path, config: "Config", resume_step: int, history: History) -> None:
        self._tasks: SimpleQueue[Callable[[Any], object] | None] = SimpleQueue()
        self._patience = _FINISH_SECONDS
        os.environ.setdefault("WANDB_SILENT", "true")  # what it has to say is said by us

        def start() -> Any:
            return _start(folder, config, resume_step, history)

        # It keeps no process alive that has nothing else to do.
        self._thread = threading.Thread(target=self._work, args=(start,), daemon=True)
        self._thread.start()

    def log(self, numbers: Mapping[str, float | int | None]) -> None:
        """Queue one step."""
        self._queue(lambda run: _log(run, numbers))

    def publish(self, report: Path) -> None:
        """Queue the folder of the report as an artifact of the run."""
        self._queue(lambda run: _publish(run, report))

    def hurry(self) -> None:
        """From now on `close` takes a second, not a minute."""
        self._patience = _HURRIED_SECONDS

    def close(self) -> None:
        """End the W&B run; what was not sent in a minute stays on the disk for `wandb sync`."""
        self._tasks.put(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            logger.warning(
                "W&B could not be finished: no answer in %.0f s; `wandb sync` in the run folder "
                "sends the rest",
                self._patience,
            )

    def _queue(self, task: Callable[[Any], object]) -> None:
        if self._thread.is_alive():
            self._tasks.put(task)

    def _work(self, start: Callable[[], Any]) -> None:
        failure = "could not be started"
        try:
            run = start()
            failure = "stopped taking numbers"
            while (task := self._tasks.get()) is not None:
                task(run)
            failure = "could not be finished"
            run.finish()
        except BaseException as error:  # W&B raises SystemExit and the like here
            logger.warning("W&B %s: %s", failure, redact_text(" ".join(str(error).split())))


def choose_mode(asked: str) -> str:
    """Decide for "online" or "offline" before W&B starts: a start that fails costs minutes.

    "auto" is online only with a login (WANDB_API_KEY or a netrc entry) and a server that answers
    within 3 seconds.
    """
    if asked != "auto":
        return asked
    url = os.environ.get("WANDB_BASE_URL", _DEFAULT_URL)
    if not _has_login(url):
        reason = "no login was found (WANDB_API_KEY or `wandb login`)"
    elif not _answers(url):
        reason = f"{urlsplit(url).hostname} does not answer"
    else:
        return "online"
    logger.warning("W&B is offline: %s; `wandb sync` in the run folder sends it later", reason)
    return "offline"


def kept_id(folder: Path) -> str | None:
    """The id in the run folder; None if there is none, or something else."""
    try:
        kept = read_regular(folder / ID_FILE, "replace").strip()
    except OSError:
        return None
    return kept if re.fullmatch(r"[A-Za-z0-9_\-]{1,64}", kept) else None


def run_id(folder: Path) -> str:
    """The id kept in the run folder, so that a resumed job stays one W&B run."""
    path = folder / ID_FILE
    if (kept := kept_id(folder)) is not None:
        return kept
    if path.exists():
        logger.warning("%s is not a W&B id: a new one is made", path)
    # An agent of a sweep has made the run already, and W&B takes no other id then.
    agent = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    made = agent or secrets.token_hex(4)
    durable.write_text(path, made + "\n")
    return made


def _start(folder: Path, config: "Config", resume_step: int, history: History) -> Any:
    import wandb

    mode = choose_mode(config.logging.mode)
    has_begun = (folder / ID_FILE).exists()
    name = run_id(folder)

    def begin(**how: Any) -> Any:
        return wandb.init(**_words(folder, config, mode), **how)

    run = _rewind(name, resume_step, begin) if has_begun else begin(id=name, resume="allow")
    if not (run.resumed or run.settings.resume_from):  # W&B knows nothing of the steps so far
        for row in history():
            if row["step"] <= resume_step:
                _log(run, row)
    _describe(run, folder)
    if run.url:
        tell(f"W&B: {run.url}")
    return run


def _words(folder: Path, config: "Config", mode: str) -> dict[str, Any]:
    import wandb

    settings = wandb.Settings(
        init_timeout=_INIT_SECONDS,
        finish_timeout=_FINISH_SECONDS,
        console="off",
        silent=True,
        save_code=False,
        # The command line and the git remote may hold secrets.
        x_disable_meta=True,
        disable_git=True,
    )
    return {
        "project": config.logging.project,
        "name": folder.name,
        "mode": mode,
        "dir": str(folder),
        "config": redact(asdict(config)),
        "settings": settings,
    }


def _rewind(name: str, step: int, begin: Callable[..., Any]) -> Any:
    """The run, with its history cut after `step` if the server does that; else whole."""
    try:
        return begin(resume_from=f"{name}?_step={step}")
    except Exception as error:
        import wandb

        wandb.teardown()  # its service still holds the id
        run = begin(id=name, resume="allow")
        reason = redact_text(" ".join(str(error).split()))
        logger.warning("W&B keeps what it has beyond step %d: no rewinding (%s)", step, reason)
        return run


def _log(run: Any, numbers: Mapping[str, float | int | None]) -> None:
    values = {k: v for k, v in numbers.items() if k != "step" and v is not None}
    run.log(values, step=numbers["step"], commit=True)


def _describe(run: Any, folder: Path) -> None:
    """Files that say what the run is, and the sums of the ledger in its summary."""
    for name in (LEDGER_FILE, fidelity.FILE_NAME):
        if (folder / name).is_file():
            # A copy: of a file elsewhere W&B makes a link, through which it could write.
            copy = shutil.copyfile(folder / name, Path(run.dir) / name)
            run.save(str(copy), base_path=run.dir, policy="now")
    try:
        ledger = json.loads((folder / LEDGER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    run.summary.update(
        {f"ledger/{name}": value for name, value in ledger.items() if isinstance(value, int)}
    )


def _publish(run: Any, report: Path) -> None:
    import wandb

    artifact = wandb.Artifact(f"report-{run.id}", type="report")
    # Read where it lies when it is sent: no copy in the home folder, none left out by a later sync.
    artifact.add_dir(str(report), policy="immutable")
    run.log_artifact(artifact)


def _has_login(url: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        file = os.environ.get("NETRC") or str(Path.home() / ".netrc")
        return netrc.netrc(file).authenticators(urlsplit(url).hostname or "") is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False


def _answers(url: str) -> bool:
    """Whether the server sends any HTTP answer: one that accepts and then sleeps is gone too."""
    outcome: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS):
                outcome.append(True)
        except urllib.error.HTTPError:
            outcome.append(True)  # an error page is an answer
        except (OSError, ValueError):
            outcome.append(False)

    thread = threading.Thread(
        target=ask, daemon=True
    )  # a name server can take longer than the timeout
    thread.start()
    thread.join(_ANSWER_SECONDS + 0.5)
    return bool(outcome) and outcome[0]
