"""Secrets taken out of whatever is written to a file or sent away."""

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HIDDEN = "***"
_NAME = (
    r"(?:api_?key|auth|authorization|token|secret|password|passwd|pwd|credentials?|key|signature)"
)
# "hub.token" and "WANDB_API_KEY" name secrets; "tokenizer" and "max_tokens" do not.
_SECRET_NAME = re.compile(rf"(?:^|[._\-/+ ]){_NAME}$", re.IGNORECASE)
_QUOTE = r"(?:\\*[\"'])?"  # inside JSON it has a backslash, which is no part of the secret
_ASSIGNMENT = re.compile(
    rf"((?:^|[\s._\-/+\"'?&;,(\[{{]){_NAME}{_QUOTE}\s*[=:]\s*{_QUOTE}(?:(?:basic|digest|token)\s+)?)"
    r"(?:\\(?![\"'])|[^\s,}'\"\\])+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(\bbearer\s+)(?:\\(?![\"'])|[^\s,}'\"\\])+", re.IGNORECASE)
# Up to the last @: passwords have some of their own.
_URL_LOGIN = re.compile(r"(\b[a-z][a-z0-9+.\-]*://)[^/\s]+@", re.IGNORECASE)
_KNOWN_FORM = re.compile(r"\b(?:hf_|wandb_v1_|ghp_|gho_|github_pat_|glpat-|sk-)[A-Za-z0-9_\-]{16,}")
# Shorter values ("1", "true", "none") would be cut out of innocent words.
_SHORTEST_SECRET = 8
_FOLDERS = ("PWD", "OLDPWD")  # the shell's working folders, not passwords
_HUB_NAME = re.compile(r"(?!\.)[\w.\-]+(/[\w.\-]+)?")


def redact_text(text: str) -> str:
    """`text` without logins in URLs, values of secret names, and secrets of the environment."""
    for value in _environment_secrets():
        text = text.replace(value, HIDDEN)
    text = _URL_LOGIN.sub(rf"\1{HIDDEN}@", text)
    text = _BEARER.sub(rf"\1{HIDDEN}", text)
    text = _ASSIGNMENT.sub(rf"\1{HIDDEN}", text)
    return _KNOWN_FORM.sub(HIDDEN, text)


def redact(value: Any) -> Any:
    """A copy of nested mappings and sequences in which every string passed `redact_text`.

    The value of a key with a secret's name (`api_key`, `hub.token`) is hidden whatever it is,
    unless it is empty.
    """
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if item and _SECRET_NAME.search(str(key)) else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return redact_text(value) if isinstance(value, str) else value


def bare_name(path: str) -> str:
    """The last part of a path: where a file lies on a machine is nobody else's business."""
    return Path(path).name or path


def bare_source(name: str) -> str:
    """A dataset of the hub in full; of a local folder in its place the last part."""
    is_on_hub = _HUB_NAME.fullmatch(name) and not Path(name).is_dir()
    return name if is_on_hub else bare_name(name)


def redact_logs() -> None:
    """From now on whatever this process logs passes `redact_text`, whoever logs it and wherever."""
    make = logging.getLogRecordFactory()

    def made(*words: Any, **named: Any) -> logging.LogRecord:
        record = make(*words, **named)
        with contextlib.suppress(Exception):  # arguments that do not fit: logging tells it later
            record.msg, record.args = redact_text(record.getMessage()), None
        if record.exc_info:
            record.exc_text = redact_text(logging.Formatter().formatException(record.exc_info))
        return record

    logging.setLogRecordFactory(made)


def _environment_secrets() -> list[str]:
    """Longest first, so that a secret that contains another is removed whole."""
    values = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET and name not in _FOLDERS
    }
    return sorted(values, key=len, reverse=True)
