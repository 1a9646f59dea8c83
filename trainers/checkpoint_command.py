"""`came-checkpoint`: whether checkpoints are whole, which there are, and their weights as one file.

    came-checkpoint verify DIR     every byte against the manifests
    came-checkpoint list DIR       steps, sizes, metrics; reads the manifests alone
    came-checkpoint export DIR     the newest good one's parameters, float32, as safetensors

DIR is a run folder, its `checkpoints`, or one step folder.  Nothing is unpickled.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from trainers import durable
from trainers.errors import CheckpointError, ConfigError
from trainers.failures import ends_with_reader, explain, report
from trainers.flags import Parser
from trainers.run import manifest as manifests
from trainers.run import tensors
from trainers.run.manifest import Manifest, RefusedError
from trainers.run.step_folders import committed, step_of

_PARAM = "param/"
NOTE = """\
parameters.safetensors: the parameters of {folder}, step {step}, in float32, by their names in the
training module.  A parameter that is tied stands under the first of its names.  To read it:

    from safetensors.torch import load_file
    module.load_state_dict(load_file("parameters.safetensors"), strict=False)
"""


@ends_with_reader
def main() -> None:
    """Runs the command of `sys.argv`; exit code 0, 2 for wrong words, 4 for what is refused."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Runs a command and prints its answer; returns the exit code."""
    try:
        arguments = _parser().parse_args(words)
    except ConfigError as error:
        return report(error, None, verbose=False)
    try:
        answer = arguments.action(arguments)
    except (CheckpointError, OSError) as error:
        answer = {"error": str(error), "exit_code": getattr(explain(error), "exit_code", 4)}
    code = answer.pop("exit_code", 0)
    text = json.dumps(answer, indent=1) if arguments.json else _in_words(answer)
    print(text, file=sys.stderr if "error" in answer and not arguments.json else sys.stdout)
    return int(code)


def verify(arguments: argparse.Namespace) -> dict[str, Any]:
    """For each commit, newest first, whether it is good, and if not, why; 4 if one is not."""
    found: list[dict[str, Any]] = []
    for folder in _folders(arguments.folder):
        try:
            _, unlisted = tensors.verify(folder)
            found.append({"checkpoint": folder.name, "good": True, "unlisted files": unlisted})
        except RefusedError as reason:
            found.append({"checkpoint": folder.name, "good": False, "reason": str(reason)})
    return {"checkpoints": found, "exit_code": 0 if all(row["good"] for row in found) else 4}


def list_(arguments: argparse.Namespace) -> dict[str, Any]:
    """For each commit, newest first, what its manifest says; 4 if one is not to be read."""
    found: list[dict[str, Any]] = []
    for folder in _folders(arguments.folder):
        try:
            found.append({"checkpoint": folder.name, **_summary(manifests.read(folder))})
        except RefusedError as reason:
            found.append({"checkpoint": folder.name, "reason": str(reason)})
    return {"checkpoints": found, "exit_code": 4 if any("reason" in row for row in found) else 0}


def export(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the parameters of the newest good commit, and a note, into a folder."""
    good = None
    for folder in _folders(arguments.folder):
        try:
            good = folder, tensors.verify(folder)[0]
            break
        except RefusedError as reason:
            print(f"{folder.name} is refused: {reason}", file=sys.stderr)
    if good is None:
        raise CheckpointError(f"no checkpoint in {arguments.folder} can be exported")
    folder, manifest = good
    out = Path(arguments.out) if arguments.out else folder.parent.parent / "export"
    out.mkdir(parents=True, exist_ok=True)
    params = _parameters(folder, manifest)
    durable.write_bytes(out / "parameters.safetensors", save(params))
    durable.write_text(out / "NOTE.txt", NOTE.format(folder=folder.name, step=manifest.step))
    return {
        "checkpoint": folder.name,
        "step": manifest.step,
        "parameters": len(params),
        "file": str(out / "parameters.safetensors"),
    }


def _parameters(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    whole = {}
    with tensors.Files(folder, manifest) as files:
        for name, record in manifest.tensors.items():
            if name.startswith(_PARAM):
                values = files.whole(name).reshape(record.shape)
                whole[name.removeprefix(_PARAM)] = values.to(torch.float32)
    return whole


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "step": manifest.step,
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "files": len(manifest.files),
        "tensors": len(manifest.tensors),
        "metrics": manifest.extra.get("metrics", {}),
        "version": manifest.versions.get("came-pretraining"),
    }


def _folders(given: str) -> list[Path]:
    """The step folders, newest first.  Raises CheckpointError if there is none."""
    folder = Path(given)
    if step_of(folder) is not None and folder.is_dir():
        return [folder]
    inside = folder / "checkpoints"
    found = committed(inside if inside.is_dir() else folder)
    if not found:
        raise CheckpointError(
            f"no checkpoint in {folder}: name a run folder, its checkpoints or a step folder"
        )
    return found


def _in_words(answer: dict[str, Any]) -> str:
    rows = answer.get("checkpoints", [answer])
    return "\n".join(
        "  ".join(
            f"{key} {value}" if key != "checkpoint" else str(value) for key, value in row.items()
        )
        for row in rows
    )


def _parser() -> Parser:
    parser = Parser(prog="came-checkpoint", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, action in (("verify", verify), ("list", list_), ("export", export)):
        command = commands.add_parser(name, help=action.__doc__)
        command.add_argument("folder", metavar="DIR")
        command.add_argument("--json", action="store_true", help="the answer as JSON")
        command.set_defaults(action=action)
        if name == "export":
            command.add_argument("--out", help="a folder; RUN/export if not given")
        parser.flags |= command.flags
    return parser


if __name__ == "__main__":
    main()
