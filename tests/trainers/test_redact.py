"""Secrets do not pass, and words that only look like them do."""

import json
import logging

import pytest

from trainers.redact import redact, redact_logs, redact_text


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-in-the-environment")
    monkeypatch.setenv("MY_TOKEN", "true")  # too short to be looked for in every text


@pytest.mark.parametrize(
    "text",
    [
        "login with canary-in-the-environment failed",
        "fetch https://me:canary@host.org/x",
        "fetch https://canary@host.org/x",
        "came-train logging.api_key=canary train.steps=3",
        "came-train +hub.token=canary",
        "--password canary-in-the-environment",
        "WANDB_API_KEY=canary came-train",
        '{"api_key": "canary"}',
        "{'token': 'canary', 'a': 1}",
        "hf_canarycanarycanary1234",
        "GET https://h/x?token=canary",
        "GET https://h/x?a=b&key=canary&c=d",
        "GET https://h/x?X-Amz-Signature=canary",
        "connect(host=h,password=canary)",
        "connect(token=canary)",
        "[token=canary]",
        "a=1;api_key=canary",
        "fetch https://me:can@canary@host.org/x",
        "fetch https://me:c@n@canary@host.org",
        "Authorization: Bearer canary",
        "{'Authorization': 'Bearer canary'}",
        "authorization: Basic canary",
        "authorization=canary",
        "bearer canary",
        r'{"reason": "bad {\"token\": \"canary\"}"}',
    ],
)
def test_secrets_are_taken_out_of_text(text: str) -> None:
    assert "canary" not in redact_text(text)
    assert "***" in redact_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "data.tokenizer=vocab.txt train.steps=10 optimizer.betas=[0.9,0.999]",
        "tokens=4096 max_tokens=12 it is true",
        "http://localhost:8080/a?b=c mail me@host.org",
        "KeyError: 'x'",
        "came-train data.tokenizer=[a,b] tokens=(1,2) monkey=3 keys=[a] author=me",
        "https://host.org/a?tokenizer=b&c=d",
        "Bearer",
    ],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert redact_text(text) == text


def test_json_stays_json() -> None:
    record = {"reason": 'bad {"token": "canary", "a": "b"}', "rank": None}
    assert json.loads(redact_text(json.dumps(record))) == {
        "reason": 'bad {"token": "***", "a": "b"}',
        "rank": None,
    }


def test_what_is_logged_is_redacted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
    redact_logs()
    logger = logging.getLogger("somebody")
    logger.warning("at %s", "https://h/x?token=canary")
    try:
        raise OSError("https://me:canary@host")
    except OSError:
        logger.exception("failed after %d", 3)
    assert "canary" not in caplog.text
    assert "at https://h/x?token=***" in caplog.text and "failed after 3" in caplog.text


def test_nested_values() -> None:
    tree = {
        "logging": {"api_key": 12345678, "url": "https://me:canary@host", "mode": "auto"},
        "betas": (0.9, 0.999),
        "data": {"tokenizer": "vocab.txt", "token": None},
    }
    assert redact(tree) == {
        "logging": {"api_key": "***", "url": "https://***@host", "mode": "auto"},
        "betas": [0.9, 0.999],
        "data": {"tokenizer": "vocab.txt", "token": None},
    }
