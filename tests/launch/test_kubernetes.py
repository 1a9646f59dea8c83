"""The PyTorchJob: held against the operator's schema, and what the operator would make of it."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from torch.distributed.run import get_args_parser

from launch import kubernetes
from launch.kubernetes import manifest, name_of
from tests.launch.jobs import AWKWARD, in_folder, job_of

SCHEMA = json.loads((Path(__file__).parent / "pytorchjob.schema.json").read_text(encoding="utf-8"))
GIVEN = {
    "nodes": 4,
    "gpus_per_node": 2,
    "kubernetes__image": "registry/came:1",
    "kubernetes__claim": "runs",
    "kubernetes__cpus": 16,
    "kubernetes__memory": "512Gi",
    "kubernetes__env": ("NCCL_DEBUG=INFO", "WHAT=$(HOME)", "WANDB_API_KEY=secret:wandb/key"),
}


def made(**changes: Any) -> dict[str, Any]:
    """The manifest, as text and back."""
    (text,) = kubernetes.render(job_of("kubernetes", **GIVEN | changes)).files.values()
    return yaml.safe_load(text)


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    (found,) = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    return found


def expanded(text: str, variables: dict[str, str]) -> str:
    """As Kubernetes does it: $(NAME) is the variable if there is one, $$ a dollar sign."""
    return re.sub(
        r"\$(\$|\((\w+)\))",
        lambda m: "$" if m[1] == "$" else variables.get(m[2], m[0]),
        text,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gpus_per_node": 0, "processes": 2, "kubernetes__cpus": 0, "kubernetes__memory": None},
        {"nodes": 1, "torchrun__min_nodes": 1, "max_restarts": 0, "kubernetes__env": ()},
    ],
)
def test_it_is_a_pytorchjob(changes: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(made(**changes), SCHEMA)


def _misspell(job: dict[str, Any]) -> None:
    container_of(job)["volumeMount"] = container_of(job).pop("volumeMounts")


def _number(job: dict[str, Any]) -> None:
    job["spec"]["nprocPerNode"] = 8


def _no_image(job: dict[str, Any]) -> None:
    del container_of(job)["image"]


def _a_number_as_variable(job: dict[str, Any]) -> None:
    container_of(job)["env"][0]["value"] = 1


def _size(job: dict[str, Any]) -> None:
    container_of(job)["resources"]["limits"]["memory"] = "512GB"


def _name(job: dict[str, Any]) -> None:
    job["metadata"]["name"] = "Quick_1"


@pytest.mark.parametrize(
    "break_it", [_misspell, _number, _no_image, _a_number_as_variable, _size, _name]
)
def test_the_schema_refuses(break_it: Any) -> None:
    job = made()
    break_it(job)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, SCHEMA)


def test_words_are_what_was_typed_whatever_variables_there_are() -> None:
    container = container_of(made())
    words = [expanded(word, {"HOME": "/pwned", "touch": "x"}) for word in container["command"]]
    assert tuple(words[-len(AWKWARD) :]) == AWKWARD
    assert [expanded(v["value"], {"HOME": "/x"}) for v in container["env"] if v["name"] == "WHAT"]
    assert {"name": "WHAT", "value": "$$(HOME)"} in container["env"]


def test_torchrun_reads_what_the_command_and_the_operator_tell_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With an elasticPolicy and workers alone the operator sets these, and not nprocPerNode."""
    job = made(torchrun__min_nodes=3)
    policy = job["spec"]["elasticPolicy"]
    told = {
        "PET_NNODES": f"{policy['minReplicas']}:{policy['maxReplicas']}",
        "PET_RDZV_BACKEND": policy["rdzvBackend"],
        "PET_RDZV_ENDPOINT": f"{job['metadata']['name']}-worker-0:23456",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    program, *words = container_of(job)["command"]
    read = get_args_parser().parse_args(words)
    assert program == "torchrun"
    assert (read.nnodes, read.nproc_per_node, read.max_restarts) == ("3:4", "2", 3)
    assert (read.rdzv_backend, read.rdzv_endpoint) == ("c10d", told["PET_RDZV_ENDPOINT"])
    assert "SIGUSR1" in read.signals_to_handle
    assert (read.no_python, read.training_script) == (True, "came-train")


def test_secrets_stand_there_by_name() -> None:
    (key,) = [v for v in container_of(made())["env"] if v["name"] == "WANDB_API_KEY"]
    assert key["valueFrom"] == {"secretKeyRef": {"name": "wandb", "key": "key"}}
    assert "value" not in key


def test_a_pod_has_the_time_that_a_run_needs_to_save() -> None:
    pod = made()["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 27.5
    environ = {v["name"]: v.get("value") for v in container_of(made())["env"]}
    assert environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "28"


def test_names_are_those_of_dns_and_differ_between_folders() -> None:
    job = job_of("kubernetes", **GIVEN)
    sweep = "optimizer=came,optimizer.lr=0.0001,objective.sequence_length=128,run.seed="
    folders = ["runs/a/quick", "runs/b/quick", "runs/7", "runs/___", "/"]
    folders += [f"runs/sweep/{sweep}{seed}" for seed in (0, 1)]
    names = [name_of(in_folder(job, folder)) for folder in folders]
    assert len(set(names)) == len(folders)
    for name in names:
        # The operator makes pods and services of it, which are DNS labels (RFC 1035).
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(f"{name}-worker-12") <= 63
    assert name_of(in_folder(job, "runs/a/quick/")) == names[0]  # the same folder, the same job


def test_it_asks_for_nothing_that_was_not_asked_for() -> None:
    changes = {"gpus_per_node": 0, "processes": 2, "kubernetes__cpus": 0}
    job = manifest(job_of("kubernetes", **GIVEN | changes | {"kubernetes__memory": None}))
    assert container_of(job)["resources"] == {}
