"""Kubernetes: a PyTorchJob of the Kubeflow training operator (v1), one pod on each machine.

The operator tells torchrun in each pod where the others are (PET_NNODES, PET_RDZV_BACKEND and
PET_RDZV_ENDPOINT in the environment); how many processes it starts stands in the command, for with
an elasticPolicy the operator (seen up to 1.9) does not pass `nprocPerNode` on. Runs, logs and data
lie in a volume that all pods see; a pod that dies is started again and the others wait for it, from
the last checkpoint.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any

import yaml

from launch import torchrun
from launch.spec import PROGRAM, Job, Start

NOT_A_NAME = re.compile("[^a-z0-9]+")
LONGEST_NAME = 43  # with a hash 50; the operator adds "-worker-12", and 63 is the limit of DNS
USER = 1000  # of the Dockerfile: its group may write into the volume
SHARED_MEMORY, DATA = "shared-memory", "data"  # names of volumes


def render(job: Job) -> Start:
    """The manifest, and the command that hands it over."""
    path = f"{job.folder}/launch/job.yaml"
    text = yaml.safe_dump(manifest(job), sort_keys=False, width=100)
    return Start(("kubectl", "apply", "-f", path), files={path: text})


def name_of(job: Job) -> str:
    """The job's name as Kubernetes takes names: lower case, digits, dashes.

    The hash is that of the folder: `kubectl apply` of another run with a like name would take this
    one's place.
    """
    name = NOT_A_NAME.sub("-", job.name.lower()).strip("-")
    name = name if name[:1].isalpha() else f"{PROGRAM}-{name}"
    digest = sha256(job.folder.rstrip("/").encode()).hexdigest()[:6]
    return f"{name[:LONGEST_NAME].strip('-')}-{digest}"


def manifest(job: Job) -> dict[str, Any]:
    """The PyTorchJob as plain values."""
    launch, settings = job.launch, job.launch.kubernetes
    worker = {
        "replicas": launch.nodes,
        "restartPolicy": "OnFailure",
        "template": {"spec": _pod(job)},
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name_of(job), "namespace": settings.namespace},
        "spec": {
            "nprocPerNode": str(job.processes),
            "runPolicy": {
                "cleanPodPolicy": "Running",  # logs of pods that have ended stay
                # Of all pods together: what no restart cures ends the job.
                "backoffLimit": launch.max_restarts * launch.nodes,
            },
            "elasticPolicy": {
                "rdzvBackend": "c10d",
                "minReplicas": launch.torchrun.min_nodes or launch.nodes,
                "maxReplicas": launch.nodes,
            },
            "pytorchReplicaSpecs": {"Worker": worker},
        },
    }


def _pod(job: Job) -> dict[str, Any]:
    settings = job.launch.kubernetes
    container = {
        "name": "pytorch",  # what the operator looks for
        "image": settings.image,
        "command": [_literal(word) for word in torchrun.command(job, [])],
        "workingDir": settings.mount,
        "env": [*map(_variable, settings.env), *_environ(job)],
        "resources": _resources(job),
        "volumeMounts": [
            {"name": DATA, "mountPath": settings.mount},
            {"name": SHARED_MEMORY, "mountPath": "/dev/shm"},
        ],
    }
    shared = {"medium": "Memory", "sizeLimit": settings.shared_memory}
    return {
        "terminationGracePeriodSeconds": int(job.patience) + 1,
        "securityContext": {"fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"},
        "containers": [container],
        "volumes": [
            {"name": DATA, "persistentVolumeClaim": {"claimName": settings.claim}},
            {"name": SHARED_MEMORY, "emptyDir": shared},
        ],
    }


def _environ(job: Job) -> list[dict[str, Any]]:
    # Prepared data are kept beside the runs, for all pods.
    environ = {"XDG_CACHE_HOME": f"{job.launch.kubernetes.mount}/.cache"} | torchrun.environ(job)
    threads = job.threads or job.launch.kubernetes.cpus // job.processes
    if threads:
        environ["OMP_NUM_THREADS"] = str(threads)
    return [{"name": name, "value": value} for name, value in environ.items()]


def _variable(word: str) -> dict[str, Any]:
    name, _, value = word.partition("=")
    if not value.startswith("secret:"):
        return {"name": name, "value": _literal(value)}
    secret, _, key = value.removeprefix("secret:").partition("/")
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _literal(text: str) -> str:
    """`text` with its dollar signs doubled: Kubernetes puts variables in place of $(NAME)."""
    return text.replace("$", "$$")


def _resources(job: Job) -> dict[str, Any]:
    settings, gpus = job.launch.kubernetes, job.launch.gpus_per_node
    asked = {"cpu": str(settings.cpus) if settings.cpus else None, "memory": settings.memory}
    asked |= {"nvidia.com/gpu": str(gpus) if gpus else None}
    limits = {name: value for name, value in asked.items() if value is not None}
    return {"limits": limits, "requests": dict(limits)} if limits else {}
