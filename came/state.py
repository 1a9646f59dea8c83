"""The state of a run by parameter name, in and out, whatever shards it.

An entry is one tensor of the run as a person thinks of it: the fp32 value of a parameter, its
momentum, one of its factors.  `gather` makes it whole from the pieces on the ranks, `scatter` cuts
a whole one into this rank's pieces.  Works for the optimizers of this package and for those of
torch whose state has the shape of the parameter (AdamW).

Momentum in int8 is gathered as the float32 values that it stands for; to scatter them again gives
back the same codes wherever a block is not cut anew.  Of the sign format the signs are gathered.
Who wants them as they are stored, as checkpoints do, takes the `parts` of each piece.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from came.fields import BoxState, Field, compute_dtype, replicated, stored_boxes
from came.momentum import Sign
from came.pieces import PLAIN, Entry, Piece, StoredPiece, format_of
from came.reduce import sum_over
from came.sharded_optimizer import ShardedOptimizer
from came.sharding import dtensor
from came.sharding.deepspeed import original_shape, source_slice
from came.sharding.discover import discover, parameter_names
from came.sharding.shard import Shard


def entries(engine: Any) -> list[Entry]:
    """Every tensor of a DeepSpeed engine's model and optimizer, in the same order on all ranks.

    Every rank must call it.  Of `engine` are read `module`, `basic_optimizer` and `optimizer`: what
    has these, the last two being the same, will do for a model that FSDP2 shards or nobody does.

    Raises:
        RuntimeError: the sharding is not known, or the optimizer keeps state of an unknown shape.
    """
    optimizer, module = engine.basic_optimizer, engine.module
    names = parameter_names(module)
    shards = discover(optimizer, engine.optimizer, names)
    if isinstance(optimizer, ShardedOptimizer):
        shards = optimizer.adopt(shards)
    found = [entry for shard in shards for entry in _shard_entries(optimizer, shard)]
    trained = {source for shard in shards for source in shard.sources}
    for param, name in names.items():
        if param not in trained:
            found.append(_frozen_entry(name, param))
    persistent = module.state_dict(keep_vars=True)
    for name, buffer in module.named_buffers():
        if name in persistent:
            found.append(_replicated(name, "buffer", buffer, tuple(buffer.shape)))
    return found


def gather(entry: Entry) -> Tensor:
    """The whole tensor, on the CPU, bit for bit.  A collective over `entry.group` if sharded."""
    if not entry.sharded:
        return entry.pieces[0].read().detach().cpu().clone().reshape(entry.shape)
    values = [piece.read() for piece in entry.pieces]
    device = next((value.device for value in values), torch.device("cpu"))
    buffer = torch.zeros(math.prod(entry.shape), dtype=entry.dtype, device=device)
    for piece, value in zip(entry.pieces, values, strict=True):
        buffer[piece.start : piece.start + piece.numel] = value
    # Summed as bytes: exactly one rank holds each element, and a float sum would lose -0.0.
    sum_over(buffer.view(torch.uint8), entry.group)
    return buffer.cpu().reshape(entry.shape)


@torch.no_grad()
def scatter(entry: Entry, whole: Tensor) -> None:
    """Write this rank's pieces (and mirrors) of the whole tensor."""
    flat = whole.reshape(-1)
    for piece in (*entry.pieces, *entry.mirrors):
        piece.write(flat[piece.start : piece.start + piece.numel])


def after_load(engine: Any) -> None:
    """Refresh what DeepSpeed keeps gathered: under ZeRO 3 the small, persistent parameters."""
    persistent = getattr(engine.optimizer, "persistent_parameters", None)
    if persistent:
        for param in persistent:
            param.partition(has_been_updated=False)
        persistent[0].all_gather(persistent)


def _shard_entries(optimizer: torch.optim.Optimizer, shard: Shard) -> Iterator[Entry]:
    masters = _pieces(shard, shard.local)
    if isinstance(optimizer, ShardedOptimizer):
        state = optimizer.state_of(shard)
        kept = _field_entries(optimizer, shard, state)
    else:
        state = _torch_state(optimizer, shard)
        kept = _elementwise_entries(shard, state)
    for index, param in enumerate(shard.layout.params):
        like = (param.name, param.shape, shard.group, not shard.layout.whole)
        mirrors = _mirrors(shard.sources[index], shard)
        yield _sharded("param", shard.tensor.dtype, masters[index], like, mirrors)
        yield _replicated(param.name, "step", state["step"], ())
        yield from kept[index]


def _field_entries(
    optimizer: ShardedOptimizer, shard: Shard, state: dict[str, Tensor]
) -> list[list[Entry]]:
    """The entries of each parameter's fields."""
    fields = optimizer.fields(shard)
    boxes: list[list[BoxState]] = [[] for _ in fields]
    for there in stored_boxes(shard.layout, fields, state):
        boxes[there.param].append(there)
    whole = replicated(shard.layout, fields, state)
    found: list[list[Entry]] = []
    for index, param in enumerate(shard.layout.params):
        like = (param.name, param.shape, shard.group, not shard.layout.whole)
        found.append([])
        for field in fields[index]:
            if field.shape is not None:
                found[-1].append(
                    _replicated(param.name, field.key, whole[index][field.key], field.shape)
                )
                continue
            pieces = [
                StoredPiece(there.start, field, param, there.box, there.stored[field.key])
                for there in boxes[index]
            ]
            key, dtype = _logical(field, shard.tensor.dtype)
            entry = _sharded(key, dtype, pieces, like, format=format_of(field))
            found[-1].append(entry)
    return found


def _logical(field: Field, dtype: torch.dtype) -> tuple[str, torch.dtype]:
    """The key and dtype under which a field is gathered."""
    if isinstance(field.storage, Sign):
        return field.key + "_sign", torch.int8
    stored = field.storage.parts[0][1]
    floating = stored is not None and stored.is_floating_point
    return field.key, stored if stored is not None and floating else compute_dtype(dtype)


def _elementwise_entries(shard: Shard, state: dict[str, Tensor]) -> list[list[Entry]]:
    """The entries of state in the shape of the tensor."""
    found: list[list[Entry]] = [[] for _ in shard.layout.params]
    for key, value in state.items():
        if key == "step":
            continue
        for index, pieces in enumerate(_pieces(shard, value)):
            param = shard.layout.params[index]
            like = (param.name, param.shape, shard.group, not shard.layout.whole)
            found[index].append(_sharded(key, value.dtype, pieces, like))
    return found


def _torch_state(optimizer: torch.optim.Optimizer, shard: Shard) -> dict[str, Tensor]:
    state: dict[str, Tensor] = optimizer.state[shard.tensor]
    if not state and isinstance(optimizer, torch.optim.AdamW):
        on_device = optimizer.defaults["fused"] or optimizer.defaults["capturable"]
        state["step"] = torch.zeros((), device=shard.tensor.device if on_device else None)
        state["exp_avg"] = torch.zeros_like(shard.tensor, requires_grad=False)
        state["exp_avg_sq"] = torch.zeros_like(shard.tensor, requires_grad=False)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    unknown = [key for key, shape in shapes.items() if shape not in ((), tuple(shard.tensor.shape))]
    if "step" not in state or unknown:
        raise RuntimeError(
            f"the state of {type(optimizer).__name__} cannot be saved by parameter name: it has "
            f"{shapes or 'no entries'} for a tensor of shape {tuple(shard.tensor.shape)}"
        )
    return state


def _pieces(shard: Shard, buffer: Tensor) -> list[list[Piece]]:
    """For each parameter of the shard, the pieces of an elementwise buffer that belong to it."""
    flat = buffer.view(-1)
    found: list[list[Piece]] = [[] for _ in shard.layout.params]
    for piece in shard.layout.fragments:
        view = flat[piece.offset : piece.offset + piece.numel]
        found[piece.param].append(Piece(piece.start, view))
    return found


def _mirrors(source: Tensor, shard: Shard) -> tuple[Piece, ...]:
    """The model's own copy of a parameter, as far as this rank holds it."""
    if source is shard.tensor:
        return ()
    if not hasattr(source, "ds_tensor"):
        return (Piece(0, source.detach().view(-1)),)
    return _ds_pieces(source)


def _ds_pieces(source: Any) -> tuple[Piece, ...]:
    """This rank's slice of a parameter that ZeRO 3 has partitioned."""
    part = source.partition_numel()
    start = dist.get_rank(source.ds_process_group) * part
    numel = min(part, source.ds_numel - start)
    return (Piece(start, source_slice(source, start, numel)),) if numel > 0 else ()


def _frozen_entry(name: str, param: Any) -> Entry:
    shape = original_shape(param)
    if dtensor.is_dtensor(param):
        layout, group = dtensor.read(param, name)
        flat = dtensor.local_part(param.detach()).view(-1)
        pieces = tuple(
            Piece(p.start, flat[p.offset : p.offset + p.numel]) for p in layout.fragments
        )
        return Entry(name, "param", shape, param.dtype, not layout.whole, pieces, group)
    if not hasattr(param, "ds_tensor"):
        return _replicated(name, "param", param.detach(), shape)
    group = param.ds_process_group
    return Entry(name, "param", shape, param.dtype, True, _ds_pieces(param), group)


def _sharded(
    key: str,
    dtype: torch.dtype,
    pieces: Sequence[Piece | StoredPiece],
    like: tuple[str, tuple[int, ...], dist.ProcessGroup | None, bool],
    mirrors: tuple[Piece, ...] = (),
    format: str = PLAIN,
) -> Entry:
    name, shape, group, sharded = like
    return Entry(name, key, shape, dtype, sharded, tuple(pieces), group, mirrors, format)


def _replicated(name: str, key: str, tensor: Tensor, shape: tuple[int, ...]) -> Entry:
    pieces = (Piece(0, tensor.reshape(-1) if tensor.dim() == 0 else tensor.view(-1)),)
    return Entry(name, key, tuple(shape), tensor.dtype, False, pieces, None)
