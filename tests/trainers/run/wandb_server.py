"""A stand-in for W&B's server: it answers what the client asks, and keeps what it was told."""

import gzip
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Server(http.server.ThreadingHTTPServer):
    """`behaviour` is "good", "no rewinding", or an HTTP error code; `delay` is in seconds."""

    daemon_threads = True

    def __init__(self, behaviour: str, delay: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour, self.delay = behaviour, delay
        self.asked: list[tuple[str, dict[str, Any]]] = []  # GraphQL operations, and their variables
        self.rows: list[dict[str, Any]] = []  # of the history, as they came
        self.uploaded: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def variables(self, operation: str) -> list[dict[str, Any]]:
        return [variables for name, variables in self.asked if name == operation]

    def answer(self, name: str, variables: dict[str, Any]) -> Any:
        project = {"id": "p", "name": "came", "entity": {"id": "e", "name": "me"}}
        run = {"id": "r", "name": variables.get("name") or variables.get("runName")}
        run |= {"displayName": "run", "config": "{}", "historyLineCount": 1, "project": project}
        files = [{"name": n, "uploadUrl": f"{self.url}/{n}"} for n in variables.get("files") or ()]
        artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
        return {
            "UpsertBucket": {"upsertBucket": {"bucket": run, "inserted": True}},
            "RewindRun": {"rewindRun": {"rewoundRun": run}},
            "RunResumeStatus": {"model": {**project, "bucket": None}},
            "Viewer": {"viewer": {"id": "v", "entity": "me", "teams": {"edges": []}}},
            "CreateRunFiles": {
                "createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}
            },
            "ArtifactType": {"project": {"artifact": None}},
            "CreateArtifact": {"createArtifact": {"artifact": artifact}},
        }.get(name)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self._body()
        time.sleep(self.server.delay)
        if self.server.behaviour.isdecimal():
            self._send({}, int(self.server.behaviour))
        elif self.path == "/graphql":
            self._graphql(json.loads(body))
        else:
            if self.path.endswith("/file_stream"):
                lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
                self.server.rows += map(json.loads, lines.get("content", ()))
            self._send({})

    def do_PUT(self) -> None:
        self.server.uploaded[self.path.lstrip("/")] = self._body()
        self._send({})

    def _graphql(self, asked: dict[str, Any]) -> None:
        (name,) = re.findall(r"^\s*(?:query|mutation)\s+(\w+)", asked["query"])
        variables = asked.get("variables") or {}
        self.server.asked.append((name, variables))
        if name == "RewindRun" and self.server.behaviour == "no rewinding":
            self._send({"data": None, "errors": [{"message": "not of this plan"}]})
        else:
            self._send({"data": self.server.answer(name, variables)})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _send(self, answer: Any, code: int = 200) -> None:
        text = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(behaviour: str = "good", delay: float = 0.0) -> Iterator[Server]:
    """A server that runs inside the block."""
    with Server(behaviour, delay) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign] # clients hang up
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
