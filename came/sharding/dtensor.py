"""Parameters that torch has sharded itself: DTensors, as `fully_shard` (FSDP2) makes them.

A rank holds some entries of the first dimension (whole rows of a matrix, whole matrices of a
batch), cut as `torch.chunk` cuts, over one dimension of a mesh of ranks.  Over all others the
parameter is replicated, and so is the step: what is summed is summed over that one dimension.

    on every rank the same     plain tensors                 row and column statistics, counters
    cut as the parameter is    DTensors of its placements    moments, codes, bytes of signs
    of this rank's own         plain, packed                 scales of int8 blocks

`torch.distributed.checkpoint` takes plain tensors for copies of each other and saves those of one
rank, so scales must not leave as they are: `came/sharding/portable.py` makes a DTensor of them.
"""

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from came.fields import Field
from came.layout import Fragment, Param, RowSplit, ShardLayout, boxes, whole

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_dtensor(value: Any) -> "TypeGuard[DTensor]":
    """Whether it is a DTensor.  Does not import what takes torch half a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, as a view: all of it, unless it is a DTensor."""
    if not is_dtensor(tensor):
        return tensor.detach()
    if torch.is_grad_enabled():
        with torch.no_grad():
            return local_part(tensor)
    found: Tensor = tensor.to_local()
    # The result of a collective that has not been waited for has no memory yet.
    return found.wait() if type(found) is not Tensor and hasattr(found, "wait") else found


def local_grad(param: Tensor) -> Tensor:
    """What this rank holds of a parameter's gradient.

    Raises:
        RuntimeError: the gradient is not sharded as its parameter is.
    """
    grad = param.grad
    assert grad is not None
    if is_dtensor(param):
        if not is_dtensor(grad) or grad.placements != param.placements:
            raise RuntimeError(
                f"the gradient of a parameter of shape {tuple(param.shape)} and placements "
                f"{param.placements} has placements {getattr(grad, 'placements', None)}: "
                "redistribute it to those of its parameter before the step"
            )
        return local_part(grad)
    return grad


def read(param: "DTensor", name: str) -> tuple[ShardLayout, dist.ProcessGroup | None]:
    """What this rank holds of a parameter, and the ranks that hold the rest; None: there is none.

    Raises:
        RuntimeError: it is sharded in another way than by its first dimension over one dimension
            of its mesh, or this rank does not hold the rows that `torch.chunk` would give it.
    """
    mesh, described = param.device_mesh, Param(name, tuple(param.shape))
    cut = [
        dim
        for dim, placement in enumerate(param.placements)
        if mesh.size(dim) > 1 and not placement.is_replicate()
    ]
    if not cut:
        return whole(described), None
    if len(cut) > 1 or not _is_row_shard(param.placements[cut[0]]):
        raise _refused(param, name)
    ranks = mesh.mesh.movedim(cut[0], 0).reshape(mesh.size(cut[0]), -1)
    holders = tuple(tuple(sorted(part)) for part in ranks.tolist())
    split = RowSplit(param.shape[0], described.numel // param.shape[0], holders)
    layout = ShardLayout((described,), split, mesh.get_local_rank(cut[0]))
    wanted, found = (len(rows_held(layout)), *param.shape[1:]), tuple(local_part(param).shape)
    if found != wanted:
        raise RuntimeError(
            f"{name} has shape {described.shape} over {split.world_size} ranks, and this rank "
            f"holds {found} of it where torch.chunk gives {wanted}: shard it with fully_shard, or "
            "with torch.distributed.tensor.distribute_tensor"
        )
    return layout, mesh.get_group(cut[0])


def _refused(param: "DTensor", name: str) -> RuntimeError:
    names, sizes = param.device_mesh.mesh_dim_names, tuple(param.device_mesh.shape)
    if any(placement.is_partial() for placement in param.placements):
        advice = "redistribute it to Replicate() or Shard(0)"
    elif len(sizes) == 1:
        advice = (
            "shard it by its first dimension, as fully_shard does without a shard_placement_fn, "
            "and tensor parallelism where it is column-wise"
        )
    else:
        advice = (
            "leave out tensor parallelism, and give fully_shard a mesh of one dimension, or of two "
            "to replicate over the first"
        )
    return RuntimeError(
        f"{name}, of shape {tuple(param.shape)}, has the placements {param.placements} on a mesh "
        f"of {sizes}{'' if names is None else f' {names}'}; optimizers of this package update "
        "what is sharded by Shard(0) over one dimension of the mesh and replicated over all "
        f"others: {advice}"
    )


def _is_row_shard(placement: Any) -> bool:
    from torch.distributed.tensor import Shard

    # Not isinstance: the strided shards of FSDP2 beside tensor parallelism lie elsewhere.
    return type(placement) is Shard and placement.dim == 0


def state_placements(param: "DTensor", *, cut: bool = True) -> tuple[Any, ...]:
    """The placements of state that is cut as a parameter is, or is the same on every rank."""
    from torch.distributed.tensor import Replicate, Shard

    # A mesh dimension of one rank may have any placement, and cuts nothing.
    return tuple(Shard(0) if cut and _is_row_shard(p) else Replicate() for p in param.placements)


def rows_held(layout: ShardLayout) -> range:
    """The entries of the first dimension that this rank holds of a parameter."""
    if isinstance(layout.split, RowSplit):
        return layout.split.rows(layout.rank)
    return range(layout.params[0].shape[0] if layout.params[0].shape else 1)


def cut_shapes(param: Param, fields: tuple[Field, ...]) -> dict[str, tuple[int, ...]]:
    """The whole shape of each state tensor that is cut as its parameter is.

    Signs of a parameter have a row of bytes for each entry of its first dimension.
    """
    shapes = {}
    for field in fields:
        if field.shape is None:
            key, shape = field.key + field.storage.parts[0][0], param.shape
            if field.format == "sign":
                (box,) = boxes(param, Fragment(0, 0, param.numel // shape[0], 0))
                shape = shape[0], field.storage.sizes(param, box)[0]
            shapes[key] = shape
    return shapes


@torch.no_grad()
def as_dtensor(part: Tensor, param: "DTensor", shape: tuple[int, ...]) -> "DTensor":
    """A DTensor of `shape`, cut as the parameter is, around this rank's part of it."""
    from torch.distributed.tensor import DTensor

    strides = torch.empty(shape, device="meta").stride()
    local = part.view(*local_part(param).shape[:1], *shape[1:])
    return DTensor.from_local(
        local,
        param.device_mesh,
        state_placements(param),
        run_check=False,
        shape=torch.Size(shape),
        stride=strides,
    )
