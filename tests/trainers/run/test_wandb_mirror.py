"""Weights & Biases: decided offline in seconds, one id per folder, never fatal, told no secrets."""

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainers.run.wandb_files import written
from trainers.compose import compose
from trainers.run import wandb_mirror
from trainers.run.metrics import Metrics
from trainers.run.wandb_mirror import WandbMirror, choose_mode, run_id

ROOT = Path(__file__).parents[3]
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that accepts connections, and sleeps."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


def url_of(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_what_was_asked_for_is_taken() -> None:
    assert choose_mode("online") == "online"
    assert choose_mode("offline") == "offline"


def test_without_a_login_it_is_offline(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_mode("auto") == "offline"
    assert "no login" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize("server", ["refuses", "sleeps"])
def test_without_an_answer_it_is_offline_within_five_seconds(
    server: str,
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-key")
    if server == "sleeps":
        monkeypatch.setenv("WANDB_BASE_URL", url_of(listener))
    start = time.monotonic()
    assert choose_mode("auto") == "offline"
    assert time.monotonic() - start < 5
    assert "does not answer" in caplog.text and len(caplog.records) == 1


def test_with_a_login_and_any_answer_it_is_online(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""
import socket
server = socket.socket(fileno={listener.fileno()})
connection, _ = server.accept()
connection.recv(4096)
connection.sendall(b"HTTP/1.1 404 Not Found\\r\\nContent-Length: 0\\r\\n\\r\\n")
"""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password canary\n")
    monkeypatch.setenv("WANDB_BASE_URL", url_of(listener))
    answer = subprocess.Popen([sys.executable, "-c", script], pass_fds=[listener.fileno()])
    try:
        assert choose_mode("auto") == "online"
    finally:
        answer.kill()
        answer.wait(timeout=10)


def test_the_id_stays_with_the_folder(tmp_path: Path) -> None:
    first = run_id(tmp_path)
    assert run_id(tmp_path) == first
    (tmp_path / "wandb_id").write_text("../x\n")
    assert run_id(tmp_path) not in (first, "../x")


def test_an_absent_package_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = compose(["experiment=quickstart", "logging=wandb", "logging.mode=offline"], 1)
    mirror = WandbMirror(tmp_path, config, 0, list)
    mirror.log({"step": 1})
    mirror.close()
    assert "W&B could not be started" in caplog.text and len(caplog.records) == 1


def test_a_start_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_mirror, "_start", lambda *_: time.sleep(60))
    monkeypatch.setattr(wandb_mirror, "_FINISH_SECONDS", 0.5)
    config = compose(["experiment=quickstart", "logging=wandb", "logging.mode=offline"], 1)
    start = time.monotonic()
    WandbMirror(tmp_path, config, 0, list).close()
    assert time.monotonic() - start < 3
    assert "no answer" in caplog.text


def test_a_run_that_breaks_is_dropped_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def log(self, *_: object, **__: object) -> None:
            raise RuntimeError("lost https://me:canary@host")

    monkeypatch.setattr(wandb_mirror, "_start", lambda *_: Broken())
    mirror = WandbMirror(tmp_path, compose(["experiment=quickstart"], 1), 0, list)
    for step in (1, 2):
        mirror.log({"step": step})
    mirror.close()
    assert len(caplog.records) == 1 and "canary" not in caplog.text


@pytest.mark.parametrize(("failed", "least"), [(True, 0.0), (False, 2.0)])
def test_an_error_waits_a_second_for_the_end_of_the_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: bool, least: float
) -> None:
    """It was told after the minute that a slow server has at the end of a run."""

    class Slow:
        def finish(self) -> None:
            time.sleep(60)

    monkeypatch.setattr(wandb_mirror, "_start", lambda *_: Slow())
    monkeypatch.setattr(wandb_mirror, "_FINISH_SECONDS", 2.5)
    monkeypatch.setattr(wandb_mirror, "_HURRIED_SECONDS", 0.1)
    config = compose(["experiment=quickstart", "logging=wandb", "logging.mode=offline"], 1)
    begin = time.monotonic()
    with contextlib.suppress(KeyError), Metrics(tmp_path, config, 0):
        if failed:
            raise KeyError
    assert least < time.monotonic() - begin < least + 2.5


OFFLINE = """
import sys
from pathlib import Path
from tests.trainers.run.wandb_files import written
from trainers.compose import compose
from trainers.run.folder import RunFolder
from trainers.run.metrics import Metrics
config = compose(["experiment=quickstart", "logging=wandb"], 1)
with RunFolder.open(sys.argv[1], rank=0) as folder:
    folder.describe(config, device="cpu", world_size=1)
    start = int(sys.argv[2])
    with Metrics(folder.path, config, 0, resume_step=start) as metrics:
        for step in (start + 1, start + 2):
            metrics.log({"step": step, "train/loss": step / 2, "eval/loss": float("nan")})
        report = Path(folder.path / "report")
        report.mkdir(exist_ok=True)
        (report / "summary.md").write_text("good")
        folder.write("ledger.json", '{"state_bytes": 24, "params": []}')
        metrics.publish(report)
"""


def test_offline_twice_is_one_id_and_holds_no_secret(tmp_path: Path) -> None:
    environment = os.environ | {
        "WANDB_API_KEY": "canary5c1b8d0e7f6a4c3b2d1e0f9a8b7c6d5e4f",
        "HF_TOKEN": "hf_canarycanarycanarycanary",
    }
    shown = ""
    for start in ("0", "1"):
        command = [sys.executable, "-c", OFFLINE, str(tmp_path / "run"), start]
        secrets = ["a.token=canary", "https://me:canary@host"]
        done = subprocess.run(
            [*command, *secrets],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        shown += done.stdout + done.stderr
    runs = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    kept = (tmp_path / "run" / "wandb_id").read_text().strip()
    assert len(runs) == 2 and all(run.name.endswith(kept) for run in runs)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert "canary" not in shown
    assert [path for path in files if b"canary" in path.read_bytes()] == []
    assert shown.count("W&B is offline") == 2
    first, second = (written(run / f"run-{kept}.wandb") for run in runs)
    for found, steps, rewound in ((first, (1, 2), None), (second, (2, 3), 1)):
        assert [(row["_step"], row["train/loss"]) for row in found["rows"]] == [
            (step, step / 2) for step in steps
        ]
        assert found["rewound"] == rewound, "wandb sync would not cut the history"
        assert found["config"]["model"]["name"] == "bert_tiny"
        assert found["summary"]["train/loss"] == steps[-1] / 2
        assert found["samples"] >= 1, "nothing of the machine"
        (artifact,) = found["artifacts"]
        assert [entry.path for entry in artifact.manifest.contents] == ["summary.md"]
    assert second["summary"]["ledger/state_bytes"] == 24 and "ledger.json" in second["files"]


class Refusing(http.server.BaseHTTPRequestHandler):
    """A server that knows no login."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_error(401)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_bad_key_is_one_warning_within_seconds(tmp_path: Path) -> None:
    script = OFFLINE.replace('"logging=wandb"', '"logging=wandb", "logging.mode=online"')
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = os.environ | {
            "WANDB_API_KEY": "canary5c1b8d0e7f6a4c3b2d1e0f9a8b7c6d5e4f",
            "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
        }
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "run"), "0"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=wandb_mirror._INIT_SECONDS + 30,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("W&B could not be started") == 1 and "401" in done.stderr
    assert "canary" not in done.stdout + done.stderr
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("train/loss") == 2
