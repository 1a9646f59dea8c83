"""The weights of a checkpoint, read into a model that stands alone: for export and evaluation."""

from pathlib import Path

import torch
from torch import Tensor, nn

from trainers.errors import CheckpointError
from trainers.run import commits, tensors
from trainers.run.manifest import Manifest, RefusedError

_KEYS = ("param", "buffer")  # the rest is the optimizer's


def newest(checkpoints: Path) -> Path:
    """The newest good commit; nothing is removed, a run may be going on. Raises CheckpointError."""
    found = commits.newest_good(checkpoints)
    if found is None:
        raise CheckpointError(f"{checkpoints} holds no checkpoint to read")
    return found[0]


@torch.no_grad()
def load_weights(module: nn.Module, folder: Path) -> int:
    """Copy the parameters and buffers of a commit into `module`; returns its step.

    Every byte is read against the manifest before anything is written. Raises CheckpointError.
    """
    try:
        manifest, _ = tensors.verify(folder)
    except RefusedError as reason:
        raise CheckpointError(f"{folder} cannot be read: {reason}") from reason
    places: dict[str, Tensor] = dict(module.named_parameters())
    persistent = module.state_dict()
    places |= {name: value for name, value in module.named_buffers() if name in persistent}
    _check(folder, manifest, places)
    with tensors.Files(folder, manifest) as files:
        for name in manifest.tensors:
            key, _, of = name.partition("/")
            if key in _KEYS:
                places[of].copy_(files.whole(name).view_as(places[of]))
    return manifest.step


def _check(folder: Path, manifest: Manifest, places: dict[str, Tensor]) -> None:
    saved = {
        name.partition("/")[2]: record.shape
        for name, record in manifest.tensors.items()
        if name.partition("/")[0] in _KEYS
    }
    wanted = {name: tuple(value.shape) for name, value in places.items()}
    wrong = sorted(name for name in saved.keys() | wanted if saved.get(name) != wanted.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{folder} is not of this model: {name} is {saved.get(name, 'absent')} there and "
            f"{wanted.get(name, 'absent')} in the model, and {len(wrong) - 1} more differ"
        )
