"""W&B online, against a stand-in for its server: what is sent, and that nobody waits for it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import wandb

from tests.trainers.run.wandb_server import Server, serving
from trainers.compose import compose
from trainers.run.metrics import Metrics

ROOT = Path(__file__).parents[3]
KEY = "canary5c1b8d0e7f6a4c3b2d1e0f9a8b7c6d5e4f"


@pytest.fixture(autouse=True)
def fresh_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B reads its environment once, and keeps a helper process."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


def train(
    folder: Path,
    resume_step: int,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    mode: str = "online",
) -> None:
    """Two steps, as the loop logs them, and the report."""
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    config = compose(["experiment=quickstart", "logging=wandb", f"logging.mode={mode}"], 1)
    (folder / "report").mkdir(parents=True, exist_ok=True)
    (folder / "report" / "summary.md").write_text("good")
    (folder / "ledger.json").write_text('{"num_params": 3, "state_bytes": 24, "params": []}')
    (folder / "fidelity.md").write_text("# Fidelity")
    with Metrics(folder, config, 0, resume_step=resume_step) as metrics:
        for step in (resume_step + 1, resume_step + 2):
            metrics.log({"step": step, "train/loss": step / 4 + resume_step})
        metrics.publish(folder / "report")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("trainers")]


def losses(server: Server) -> list[tuple[int, float]]:
    return [(row["_step"], row["train/loss"]) for row in server.rows]


def test_a_resumed_run_is_the_same_one_cut_at_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as server:
        train(tmp_path, 0, server, monkeypatch)
        name = (tmp_path / "wandb_id").read_text().strip()
        assert server.variables("RewindRun") == []
        assert losses(server) == [(1, 0.25), (2, 0.5)]
        wandb.teardown()
        train(tmp_path, 1, server, monkeypatch)
    (rewound,) = server.variables("RewindRun")
    assert (rewound["runName"], rewound["metricName"], rewound["metricValue"]) == (name, "_step", 1)
    assert losses(server)[2:] == [(2, 1.5), (3, 1.75)]
    assert {run["name"] for run in server.variables("UpsertBucket")} == {name}
    assert server.uploaded["fidelity.md"] == b"# Fidelity"
    assert json.loads(server.uploaded["wandb-summary.json"])["ledger/state_bytes"] == 24
    reports = [asked["input"] for asked in server.variables("CreateArtifact")]
    assert {(r["artifactTypeName"], r["artifactCollectionName"]) for r in reports} == {
        ("report", f"report-{name}")
    }
    assert told(caplog) == []


def test_where_a_server_does_not_rewind_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And to one that knows nothing of it yet, the steps so far are sent as well."""
    (tmp_path / "wandb_id").write_text("abcd1234\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "train/loss": 9.0}\n{"step": 8}\n')
    with serving("no rewinding") as server:
        train(tmp_path, 4, server, monkeypatch)
    assert losses(server) == [(4, 9.0), (5, 5.25), (6, 5.5)]
    assert {run["name"] for run in server.variables("UpsertBucket")} == {"abcd1234"}
    (warning,) = told(caplog)
    assert "W&B keeps what it has beyond step 4" in warning and "not of this plan" in warning


def test_what_was_kept_offline_is_sent_by_wandb_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        train(tmp_path, 0, server, monkeypatch, mode="offline")
        wandb.teardown()
        assert server.asked == [] and server.rows == []
        (kept,) = (tmp_path / "wandb").glob("offline-run-*")
        command = [sys.executable, "-m", "wandb", "sync", str(kept)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(server) == [(1, 0.25), (2, 0.5)]
    name = (tmp_path / "wandb_id").read_text().strip()
    assert {run["name"] for run in server.variables("UpsertBucket")} == {name}
    assert KEY not in done.stdout + done.stderr


BAD = """
import os, sys, time
from pathlib import Path
from trainers.compose import compose
from trainers.run import wandb_mirror
from trainers.run.metrics import Metrics
wandb_mirror._INIT_SECONDS, wandb_mirror._FINISH_SECONDS = 2.0, 3.0
config = compose(["experiment=quickstart", "logging=wandb", "logging.mode=online"], 1)
begin = time.monotonic()
with Metrics(Path(sys.argv[1]), config, 0) as metrics:
    for step in range(1, 51):
        metrics.log({"step": step, "train/loss": 1.0})
    metrics.publish(Path(sys.argv[1]))
    trained = time.monotonic()
print(trained - begin, time.monotonic() - trained, flush=True)
os._exit(0)  # as a rank ends
"""


def test_a_bad_server_is_one_warning_and_never_waited_for(tmp_path: Path) -> None:
    """Slow, failing, absent: the steps take what they take, the end is bounded."""
    with ExitStack() as stack:
        slow, failing = stack.enter_context(serving(delay=20)), stack.enter_context(serving("500"))
        urls = {"slow": slow.url, "failing": failing.url, "absent": "http://127.0.0.1:9"}
        started = {
            name: subprocess.Popen(
                [sys.executable, "-c", BAD, str(tmp_path / name)],
                cwd=ROOT,
                env=os.environ | {"WANDB_BASE_URL": url},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name, url in urls.items()
            if not (tmp_path / name).mkdir()
        }
        ended = {name: process.communicate(timeout=100) for name, process in started.items()}
    for name, (shown, said) in ended.items():
        training, closing = map(float, shown.splitlines()[-1].split())
        assert training < 1.5 and closing < 4.5, (name, training, closing)
        assert said.count("W&B could not be") == 1 and KEY not in said, (name, said)
        assert (tmp_path / name / "metrics.jsonl").read_text().count("train/loss") == 50
