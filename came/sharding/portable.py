"""State that is saved on one number of ranks and loaded on another.

The blocks of the int8 format follow the parameter.  Those of a narrow matrix hold several rows, and
a rank's rows may begin in the middle of one: then two ranks have a scale each for their parts of
it, and the scales of all ranks are no pieces of one whole tensor.  So they are saved by row:

    blocks of 3 rows, 8 rows on 2 ranks       saved: for each entry of the first dimension the
    rank 0: a a a b    rank 1: b' b' c c      scales of all blocks that it touches, which is a
    scales a, b        scales b', c           tensor cut as the parameter is: a a a b b' b' c c

Whoever loads rows takes for each block the largest of its scales.  Codes that were made with a
smaller one are rounded anew, once; where no block is put together nothing changes.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from came.fields import Field, allocate
from came.layout import Param, ShardLayout
from came.momentum import BLOCK, FORMATS, rows_per_block
from came.sharding.dtensor import (
    as_dtensor,
    cut_shapes,
    is_dtensor,
    local_part,
    rows_held,
    state_placements,
)
from came.sharding.shard import Shard

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

CODES, SCALES = (suffix for suffix, _ in FORMATS["int8"].parts)


def fill(shard: Shard, fields: list[tuple[Field, ...]], state: dict[str, Any]) -> None:
    """Allocate the state of a shard, in place; or, where it was loaded, bring it into the form in
    which it is kept.

    The loaded state of a DTensor may be sharded as it is, or whole on every rank.  The state of
    `came-pytorch` for a whole parameter is taken: it counts in an int, and has no clip factor.
    What it kept for a flat slice is no state of CAME.

    Raises:
        RuntimeError: the loaded state is not of this layout.
    """
    wanted = allocate(shard.local, shard.layout, fields)
    if is_dtensor(shard.tensor):
        for key, shape in cut_shapes(shard.layout.params[0], fields[0]).items():
            wanted[key] = as_dtensor(wanted[key], shard.tensor, shape)
    if len(state) <= 1:
        state.update(wanted)
        return
    state.pop("RMS", None)
    state["step"] = torch.tensor(
        float(state.get("step", 0)), dtype=torch.float32, device=wanted["step"].device
    )
    if "clip_factor" in wanted:
        state.setdefault("clip_factor", wanted["clip_factor"])
    if not shard.layout.packed:
        _take_in(shard.tensor, shard.layout, fields[0], state, wanted)
    found = {key: tuple(value.shape) for key, value in state.items()}
    shapes = {key: tuple(value.shape) for key, value in wanted.items()}
    if found != shapes:
        raise RuntimeError(
            f"the loaded state of {shard.layout.params[0].name} does not fit: it has {found}, and "
            f"{shapes} are kept; it was saved by an optimizer that saw a flat vector, under "
            "another sharding or with another momentum format: load the weights without the "
            "optimizer"
        )
    for key, like in wanted.items():
        state[key] = state[key].to(like.dtype)


def exported(
    shard: Shard, fields: list[tuple[Field, ...]], state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The state of a shard as it is saved: that of a parameter has the same shapes whether it is a
    DTensor or not, and there is nothing in it that is one rank's own."""
    found, tensor = dict(state), shard.tensor
    if shard.layout.packed:
        return found
    param, rows = shard.layout.params[0], rows_held(shard.layout)
    for key, shape in cut_shapes(param, fields[0]).items():
        if state[key].shape != shape:
            found[key] = state[key].view(shape)
    for key, shape in _scale_shapes(param, fields[0]).items():
        by_row = scales_by_row(param, rows, state[key])
        found[key] = as_dtensor(by_row, tensor, shape) if is_dtensor(tensor) else by_row
    return found


@torch.no_grad()
def _take_in(
    tensor: Tensor,
    layout: ShardLayout,
    fields: tuple[Field, ...],
    state: dict[str, Any],
    wanted: dict[str, Tensor],
) -> None:
    """Give loaded state of a parameter the shapes of `wanted`, in place, where that can be done."""
    param, rows = layout.params[0], rows_held(layout)
    cut, scales = cut_shapes(param, fields), _scale_shapes(param, fields)
    shapes = cut | scales
    parts: dict[str, Tensor] = {}
    for key, value in state.items():
        if is_dtensor(value):
            parts[key] = _part(key, value, tensor, param, shapes.get(key))
        elif key in shapes:
            if key in scales and value.numel() == _num_scales(param):  # of a whole parameter
                value = scales_by_row(param, range(param.shape[0]), value)
            if value.numel() == math.prod(shapes[key]):
                whole = value.reshape(shapes[key])
                part = whole[rows.start : rows.stop] if whole.dim() else whole
                parts[key] = part.clone(memory_format=torch.contiguous_format)
    for key in scales.keys() & parts.keys():
        codes = parts.get(key.removesuffix(SCALES) + CODES)
        if codes is not None:
            parts[key] = scales_by_block(param, rows, parts[key], codes)
    for key, part in parts.items():
        like = wanted.get(key)
        if is_dtensor(like) and is_dtensor(tensor):
            state[key] = as_dtensor(part, tensor, cut[key])
        elif like is not None and like.numel() == part.numel():
            state[key] = part.reshape(like.shape)


def _part(
    key: str, value: "DTensor", tensor: Tensor, param: Param, shape: tuple[int, ...] | None
) -> Tensor:
    """This rank's part of a DTensor of the state, which must lie as the parameter does and have
    `shape`; if that is None, be the same on every rank."""
    what = f"{key} of {param.name}"
    if not is_dtensor(tensor):
        raise RuntimeError(
            f"the loaded state is sharded and its parameter is not: {what} has the placements "
            f"{value.placements}; gather it first, with StateDictOptions(full_state_dict=True) of "
            "torch.distributed.checkpoint.state_dict"
        )
    mesh, found = tensor.device_mesh, value.placements
    wanted = state_placements(tensor, cut=shape is not None)
    if not mesh.mesh.equal(value.device_mesh.mesh) or any(
        mesh.size(dim) > 1 and found[dim] != wanted[dim] for dim in range(mesh.ndim)
    ):
        raise RuntimeError(
            f"the loaded state is not sharded as its parameter is: {what} has the placements "
            f"{found} on {value.device_mesh}, and {wanted} on {mesh} is needed; save and load it "
            "with torch.distributed.checkpoint, which cuts it anew"
        )
    if shape is not None and value.shape != shape:
        raise RuntimeError(
            f"the loaded state does not fit: {what} has shape {tuple(value.shape)}, and {shape} is "
            "kept; it was saved with another momentum format, or by something else"
        )
    return local_part(value)


def _scale_shapes(param: Param, fields: tuple[Field, ...]) -> dict[str, tuple[int, int]]:
    """The whole shape of each tensor of scales as it is saved."""
    return {
        field.key + SCALES: (param.shape[0], _most_touched(param) * _col_blocks(param))
        for field in fields
        if field.shape is None and field.format == "int8"
    }


def _num_scales(param: Param) -> int:
    """Scales of a parameter that is not cut."""
    batch, rows, _ = param.matrices
    return -(-batch * rows // rows_per_block(param)) * _col_blocks(param)


def _col_blocks(param: Param) -> int:
    return -(-param.matrices[2] // BLOCK)


def _height(param: Param) -> int:
    """Rows of matrices in one entry of the first dimension."""
    batch, rows, _ = param.matrices
    return batch * rows // param.shape[0]


def _most_touched(param: Param) -> int:
    """Blocks, counted downwards, that the rows of one entry may touch."""
    per_block = rows_per_block(param)
    return (_height(param) + per_block - 2) // per_block + 1


def _touched(param: Param, rows: range) -> Tensor:
    """For each entry the blocks that its rows touch, the last again where it touches fewer; the
    block in which the first entry begins is number 0."""
    per_block, height = rows_per_block(param), _height(param)
    entries = torch.arange(rows.start, rows.stop).unsqueeze(1)
    first, last = entries * height // per_block, ((entries + 1) * height - 1) // per_block
    touched = torch.minimum(first + torch.arange(_most_touched(param)), last)
    return touched - rows.start * height // per_block


def scales_by_row(param: Param, rows: range, by_block: Tensor) -> Tensor:
    """Scales of the blocks that some entries touch as `(entries, blocks touched * across)`."""
    touched = _touched(param, rows).to(by_block.device)
    return by_block.view(-1, _col_blocks(param))[touched].flatten(1)


def scales_by_block(param: Param, rows: range, by_row: Tensor, codes: Tensor) -> Tensor:
    """Back from `scales_by_row`.  Codes, `(entries, ...)`, whose scale is not that of their block
    are rounded anew, in place."""
    per_block, height, across = rows_per_block(param), _height(param), _col_blocks(param)
    touched = _touched(param, rows).to(by_row.device)
    old = by_row.reshape(*touched.shape, across)
    num_blocks = int(touched[-1, -1]) + 1 if len(rows) else 0
    scales = old.new_zeros(num_blocks, across)
    index = touched.view(-1, 1).expand(-1, across)
    scales.scatter_reduce_(0, index, old.view(-1, across), "amax")
    change = torch.where(scales[touched] > 0, old / scales[touched], 0.0)
    if change.ne(1).any():
        row = torch.arange(len(rows) * height, device=codes.device)
        block = (rows.start * height + row) // per_block - rows.start * height // per_block
        of_row = change[row // height, block - touched[row // height, 0]]
        column = torch.arange(param.matrices[2], device=codes.device) // BLOCK
        flat = codes.view(len(row), len(column))
        flat.copy_((flat * of_row[:, column]).round_().nan_to_num_(0.0))
    return scales.flatten()
