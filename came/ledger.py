"""The ledger: what the optimizer keeps for each parameter, and which ranks hold it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist

from came.fields import Field, replicated_bytes, sharded_bytes
from came.layout import Fragment, Param, boxes
from came.sharding.shard import Shard


@dataclass(frozen=True)
class LedgerRow:
    """One parameter: its rule is "factored" (four factor vectors) or "vector".

    `owners` hold the parameter, each a slice of it, or each all of it where nothing is sharded.
    `sharded_bytes` of state lie as the parameter does, `replicated_bytes` on every rank.
    """

    name: str
    shape: tuple[int, ...]
    rule: str
    weight_decay: float
    owners: tuple[int, ...]
    sharded_bytes: int
    replicated_bytes: int

    @property
    def state_bytes(self) -> int:
        """Bytes of one copy of the parameter's state."""
        return self.sharded_bytes + self.replicated_bytes


@dataclass(frozen=True)
class Ledger:
    """All parameters of an optimizer.  Prints as a table; `as_dict()` is ready for JSON."""

    rows: tuple[LedgerRow, ...]
    world_size: int

    @property
    def num_params(self) -> int:
        return sum(Param(row.name, row.shape).numel for row in self.rows)

    @property
    def state_bytes(self) -> int:
        """Bytes of one copy of the whole state."""
        return sum(row.state_bytes for row in self.rows)

    @property
    def replicated_bytes(self) -> int:
        """Bytes of state that every rank holds."""
        return sum(row.replicated_bytes for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        return {
            "world_size": self.world_size,
            "num_params": self.num_params,
            "state_bytes": self.state_bytes,
            "replicated_bytes": self.replicated_bytes,
            "params": [{**asdict(row), "state_bytes": row.state_bytes} for row in self.rows],
        }

    def __str__(self) -> str:
        head = ("parameter", "shape", "rule", "decay", "ranks", "state bytes")
        table = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.rjust(width) if i in (3, 5) else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        factored = sum(row.rule == "factored" for row in self.rows)
        lines.append(
            f"{len(self.rows)} parameters ({factored} factored), {self.num_params:,} numbers, "
            f"{self.state_bytes:,} bytes of state, {self.world_size} rank(s), "
            f"{self.replicated_bytes:,} bytes of factors on every rank"
        )
        return "\n".join(lines)


def _cells(row: LedgerRow) -> tuple[str, ...]:
    first, last = row.owners[0], row.owners[-1]
    ranks = str(first) if first == last else f"{first}-{last}"
    shape = "x".join(map(str, row.shape)) or "scalar"
    return row.name, shape, row.rule, f"{row.weight_decay:g}", ranks, f"{row.state_bytes:,}"


def ledger_rows(
    shard: Shard, fields: list[tuple[Field, ...]], groups: list[dict[str, Any]]
) -> Iterator[LedgerRow]:
    """The ledger of one shard; `groups` are the `param_groups` of its optimizer."""
    dtype = shard.tensor.dtype
    for index, (param, kept) in enumerate(zip(shard.layout.params, fields, strict=True)):
        all_of_it = boxes(param, Fragment(0, 0, param.numel, 0))
        yield LedgerRow(
            name=param.name,
            shape=param.shape,
            rule="factored" if param.factored else "vector",
            weight_decay=groups[shard.group_index]["weight_decay"],
            owners=_owners(shard, index),
            sharded_bytes=sharded_bytes(param, kept, all_of_it, dtype),
            replicated_bytes=replicated_bytes(kept, dtype),
        )


def _owners(shard: Shard, index: int) -> tuple[int, ...]:
    if shard.group is None and dist.is_initialized():
        return tuple(range(dist.get_world_size()))  # every rank holds all of it
    return tuple(shard.layout.split.owners(index))
