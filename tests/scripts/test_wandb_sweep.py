"""The sweep file for W&B: its agent's own code makes the command, and the command trains."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb.sdk.lib import config_util

from tests.trainers.data.corpus import write_text
from trainers.compose import compose
from trainers.run import wandb_mirror

REPOSITORY = Path(__file__).resolve().parents[2]
SWEEP: dict[str, Any] = yaml.safe_load(
    (REPOSITORY / "scripts" / "examples" / "wandb_sweep.yaml").read_text(encoding="utf-8")
)
FIRST = {name: parameter["values"][0] for name, parameter in SWEEP["parameters"].items()}
# docs.wandb.ai, "Sweep configuration options": the package has no schema (wandb 0.31), the server
# tells what it does not like.
KEYS = {
    "type": "object",
    "additionalProperties": False,
    "required": ["program", "method", "parameters"],
    "properties": {
        "program": {"type": "string"},
        "project": {"type": "string"},
        "method": {"enum": ["grid", "random", "bayes"]},
        "metric": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string"}, "goal": {"enum": ["minimize", "maximize"]}},
        },
        "parameters": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["values"],
                "properties": {"values": {"type": "array", "minItems": 1}},
            },
        },
        "command": {"type": "array", "items": {"type": "string"}},
    },
}


def command_of(values: dict[str, Any]) -> list[str]:
    """As wandb_agent.Agent._command_run puts it together."""
    told = create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})
    told |= {"interpreter": ["python"], "program": [SWEEP["program"]], "env": ["/usr/bin/env"]}
    words: list[str] = []
    for word in create_sweep_command(copy.copy(SWEEP["command"])):
        is_macro = word.startswith("${") and word.endswith("}")
        words += (told[word[2:-1]] or []) if is_macro else [word]
    return words


def test_the_file_has_what_a_sweep_has() -> None:
    jsonschema.validate(SWEEP, KEYS)


def test_every_value_is_one_that_came_train_takes() -> None:
    for name, parameter in SWEEP["parameters"].items():
        for value in parameter["values"]:
            words = command_of({name: value})
            compose([word for word in words if word.startswith(f"{name}=")])


def test_the_command_trains_as_the_run_that_the_agent_has_made(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", num_documents=200)
    short = {"train.steps": 1, "data": "text", "data.path": str(text), "eval.samples": 16}
    short |= {"data.vocab_size": 300, "data.cache_dir": str(tmp_path), "launch.processes": 1}
    agent = {"WANDB_SWEEP_ID": "sweep123", "WANDB_RUN_ID": "run45678", "WANDB_PROJECT": "came"}
    # What the agent has chosen reaches W&B by a file as well.
    chosen = FIRST | short | {"logging.mode": "offline"}
    agent["WANDB_SWEEP_PARAM_PATH"] = str(tmp_path / "chosen.yaml")
    told = {name: {"value": value} for name, value in chosen.items()}
    config_util.save_config_file_from_dict(agent["WANDB_SWEEP_PARAM_PATH"], told)
    kept = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command_of(chosen),
        cwd=tmp_path,
        env=kept | agent | {"PATH": programs, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "wandb_sweep" / "run45678"
    assert (folder / "report" / "summary.md").exists()
    assert (folder / wandb_mirror.ID_FILE).read_text() == "run45678\n"
    (run,) = (folder / "wandb").glob("offline-run-*-run45678")
    assert any(run.glob("run-run45678.wandb"))
    assert "could not be" not in done.stderr


def test_outside_of_a_sweep_the_id_is_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    monkeypatch.setenv("WANDB_RUN_ID", "another")
    made = wandb_mirror.run_id(tmp_path)
    assert made != "another"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    assert wandb_mirror.run_id(tmp_path) == made  # a run that goes on stays what it was
