"""The state of a run by parameter name, in and out, whatever shards it.

An entry is one tensor of the run as a person thinks of it: the fp32 value of a parameter, its
momentum, one of its factors.  `gather` makes it whole from the pieces on the ranks, `scatter` cuts
a whole one into this rank's pieces.  Works for CAME and for torch optimizers whose state has the
shape of the parameter (AdamW).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from came.optimizer import CAME
from came.reduce import sum_over
from came.rules.factored import FACTORS, factor_shapes, factor_views, vector_views
from came.sharding.deepspeed import original_shape, source_slice
from came.sharding.discover import discover, parameter_names
from came.sharding.shard import Shard


@dataclass(frozen=True)
class Piece:
    """`view`, 1-D and writable, holds the elements from `start` on of the flattened whole."""

    start: int
    view: Tensor


@dataclass(frozen=True)
class Entry:
    """One tensor of the run.

    `key` is "param", "buffer" or a key of the optimizer's state.  Where `sharded`, `pieces` are
    this rank's part of a tensor that `group` holds together; else every rank holds all of it.
    `mirrors` are copies that must follow, such as the low-precision weights of an fp32 master.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    sharded: bool
    pieces: tuple[Piece, ...]
    group: dist.ProcessGroup | None
    mirrors: tuple[Piece, ...] = ()


def entries(engine: Any) -> list[Entry]:
    """Every tensor of a DeepSpeed engine's model and optimizer, in the same order on all ranks.

    Every rank must call it.

    Raises:
        RuntimeError: the sharding is not known, or the optimizer keeps state of an unknown shape.
    """
    optimizer, module = engine.basic_optimizer, engine.module
    names = parameter_names(module)
    shards = discover(optimizer, engine.optimizer, names)
    if isinstance(optimizer, CAME):
        optimizer.adopt(shards)
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
        return entry.pieces[0].view.detach().cpu().clone().reshape(entry.shape)
    device = next((piece.view.device for piece in entry.pieces), torch.device("cpu"))
    buffer = torch.zeros(math.prod(entry.shape), dtype=entry.dtype, device=device)
    for piece in entry.pieces:
        buffer[piece.start : piece.start + piece.view.numel()] = piece.view
    # Summed as bytes: exactly one rank holds each element, and a float sum would lose -0.0.
    sum_over(buffer.view(torch.uint8), entry.group)
    return buffer.cpu().reshape(entry.shape)


@torch.no_grad()
def scatter(entry: Entry, whole: Tensor) -> None:
    """Write this rank's pieces (and mirrors) of the whole tensor."""
    flat = whole.reshape(-1)
    for piece in (*entry.pieces, *entry.mirrors):
        piece.view.copy_(flat[piece.start : piece.start + piece.view.numel()])


def after_load(engine: Any) -> None:
    """Refresh what DeepSpeed keeps gathered: under ZeRO 3 the small, persistent parameters."""
    persistent = getattr(engine.optimizer, "persistent_parameters", None)
    if persistent:
        for param in persistent:
            param.partition(has_been_updated=False)
        persistent[0].all_gather(persistent)


def _shard_entries(optimizer: torch.optim.Optimizer, shard: Shard) -> Iterator[Entry]:
    masters = _pieces(shard, shard.tensor.detach())
    state = _state(optimizer, shard)
    elementwise = {
        key: _pieces(shard, value)
        for key, value in state.items()
        if key != "step" and value.shape == shard.tensor.shape
    }
    if isinstance(optimizer, CAME):
        elementwise = {"exp_avg": elementwise["exp_avg"]}
        factors = factor_views(shard.layout, state)
        vectors = vector_views(shard.layout, state)
    for index, param in enumerate(shard.layout.params):
        group = shard.group
        like = (param.name, param.shape, group, not shard.layout.whole)
        source = shard.sources[index]
        yield _sharded("param", shard.tensor.dtype, masters[index], like, _mirrors(source, shard))
        for key, pieces in elementwise.items():
            yield _sharded(key, state[key].dtype, pieces[index], like)
        yield _replicated(param.name, "step", state["step"], ())
        if not isinstance(optimizer, CAME):
            continue
        if param.factored:
            views = factors[index]
            shapes = factor_shapes(param.shape)
            for key in FACTORS:
                view = getattr(views, key.removeprefix("exp_avg_"))
                yield _replicated(param.name, key, view, shapes[key[-3:]])
            yield _replicated(param.name, "clip_factor", views.clip, ())
        else:
            second = [Piece(p.start, view) for p, view in vectors if p.param == index]
            yield _sharded("exp_avg_sq", state["exp_avg"].dtype, second, like)


def _state(optimizer: torch.optim.Optimizer, shard: Shard) -> dict[str, Tensor]:
    if isinstance(optimizer, CAME):
        return optimizer.state_of(shard)
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
    if not hasattr(param, "ds_tensor"):
        return _replicated(name, "param", param.detach(), shape)
    group = param.ds_process_group
    return Entry(name, "param", shape, param.dtype, True, _ds_pieces(param), group)


def _sharded(
    key: str,
    dtype: torch.dtype,
    pieces: list[Piece],
    like: tuple[str, tuple[int, ...], dist.ProcessGroup | None, bool],
    mirrors: tuple[Piece, ...] = (),
) -> Entry:
    name, shape, group, sharded = like
    return Entry(name, key, shape, dtype, sharded, tuple(pieces), group, mirrors)


def _replicated(name: str, key: str, tensor: Tensor, shape: tuple[int, ...]) -> Entry:
    pieces = (Piece(0, tensor.reshape(-1) if tensor.dim() == 0 else tensor.view(-1)),)
    return Entry(name, key, tuple(shape), tensor.dtype, False, pieces, None)
