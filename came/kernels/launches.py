"""What a step on a GPU launches, prepared once for each part: a step is many short launches."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from came.kernels import tiles, units
from came.kernels.mirror import DeviceRows, Mirror, captured
from came.kernels.table import Part, Table

PROGRAMS = 4  # that each multiprocessor should have, so that enough is read at a time
MIN_CHUNKS, MAX_CHUNKS = 4, 32  # of a tile
WARPS = {1024: 4, 4096: 8, 8192: 16}  # of a small step, by the numbers it takes at a time


class Launch:
    """A kernel with its grid and with all arguments that stay the same from step to step.

    `fixed`, tensors as addresses, follow the moving arguments, and `constants` follow them.  The
    compiled kernel is kept: to look it up takes longer than to launch it.
    """

    def __init__(
        self,
        kernel: Any,
        num_programs: int,
        fixed: list[Tensor | int],
        constants: list[int],
        num_warps: int = 4,
    ) -> None:
        self._kernel, self._grid, self._num_warps = kernel, (num_programs, 1, 1), num_warps
        self._kept = fixed
        addresses = (x.data_ptr() if isinstance(x, Tensor) else x for x in fixed)
        self._rest = (*addresses, *constants)
        self._run: Any = None

    def __call__(self, *moving: int) -> None:
        if self._run is not None:
            self._run(*moving, *self._rest)
            return
        # Without fusion a product is rounded as in plain torch, whatever Triton's default is.
        compiled = self._kernel[self._grid](
            *moving, *self._rest, num_warps=self._num_warps, enable_fp_fusion=False
        )
        if compiled is not None:  # it is, where Triton interprets
            self._run = compiled[self._grid]


@dataclass
class PartLaunches:
    """The launches of a part, by the function that launches them."""

    squares: list[Launch]
    update_squares: list[Launch]
    residuals: list[Launch]
    clip_batches: list[Launch]
    update_confidence: list[Launch]
    update: list[Launch]
    keep_magnitudes: list[Launch]


@dataclass
class VectorLaunches:
    """The launches over all vectors of a table."""

    squares: list[Launch]
    update: list[Launch]


class Tables:
    """A table on the device, with what was prepared for its parts.

    Raises:
        RuntimeError: there was no warm-up before a capture.
    """

    def __init__(self, table: Table) -> None:
        device = table.rms.device
        interpreted = import_module("triton").knobs.runtime.interpret
        if captured(device):
            raise RuntimeError(
                "a step of CAME can be captured in a CUDA graph only after the same step was taken "
                "without one: warm up"
            )
        self.guard: AbstractContextManager[Any] = nullcontext()
        if not interpreted:
            self.guard = torch.cuda.device(device)
        self._passes = import_module("came.kernels.triton_passes")
        self._update = import_module("came.kernels.triton_update")
        self._factors = import_module("came.kernels.triton_factors")
        self._vectors = import_module("came.kernels.triton_vectors")
        self._device, self._steps, self._rms = device, -1, table.rms
        self._matrices = DeviceRows(table.matrices, device)
        self._vector_rows = DeviceRows(table.vectors, device)
        self._matrix = Mirror(table.matrix, device)
        self._statistic = Mirror(table.statistic, device)
        self._parts: dict[range, PartLaunches] = {}
        self._aligned = table.matrices.address[:, 0] % tiles.ALIGNMENT == 0
        self.scratch = torch.empty(1, device=device)

    def refresh(self, table: Table) -> None:
        """Take over a step, if it is a new one.

        Raises:
            RuntimeError: a step whose numbers depend on its number is captured in a CUDA graph.
        """
        if self._steps != table.steps:
            counts = sorted(self._matrices.counts() | self._vector_rows.counts())
            if counts and captured(self._device):
                raise RuntimeError(
                    f"a step with {' and '.join(counts)} cannot be captured in a CUDA graph: it "
                    "depends on the number of the step, and every replay would have the same"
                )
            self._steps = table.steps
            self._vector_rows.refresh()
            if self._matrices.refresh():
                aligned = table.matrices.address[:, 0] % tiles.ALIGNMENT == 0
                if not torch.equal(aligned, self._aligned):
                    self._parts.clear()  # more or fewer bytes can be read at once
                    self._aligned = aligned

    def part(self, part: Part) -> PartLaunches:
        """The launches of a part, prepared at the first call."""
        found = self._parts.get(part.matrices)
        if found is None:
            with torch.device("cpu"):  # whatever the default is
                found = self._parts[part.matrices] = self._prepare(part)
        return found

    def _prepare(self, part: Part) -> PartLaunches:
        boxes = tiles.boxes(part)
        chunks = self._chunks(sum(box.rows * box.cols for box in boxes))
        sums = tiles.sum_tiles(boxes, chunks)
        self._reserve(3 * max((launch.num_parts for launch in sums), default=0))
        found = PartLaunches([], [], [], [], [], [], [])
        for launch in sums:
            found.squares.append(self._sums(launch, second=False))
            found.residuals.append(self._sums(launch, second=True))
        for shape, table in tiles.update_tiles(boxes, chunks):
            found.update.append(self._updates(shape, table))
        for unit in units.units(part):
            self._small_steps(unit, found)
        return found

    def _sums(self, launch: tiles.SumTiles, *, second: bool) -> Launch:
        rows, shape = self._matrices, launch.shape
        counters = torch.zeros(max(1, launch.num_counters), dtype=torch.int32, device=self._device)
        fixed: list[Tensor | int] = [self._up(launch.tiles), launch.num_parts, counters]
        fixed += [rows.address.tensor, rows.box.tensor, self._matrix.tensor, self._statistic.tensor]
        constants = [second, shape.grad_dtype, shape.format, shape.aligned, shape.block_rows]
        constants += [shape.matrices, shape.rows, shape.cols]
        return Launch(self._passes.add_sums, len(launch.tiles), fixed, constants)

    def _updates(self, shape: tiles.Shape, table: Tensor) -> Launch:
        rows = self._matrices
        fixed: list[Tensor | int] = [self._up(table), rows.address.tensor, rows.box.tensor]
        fixed += [self._matrix.tensor, self._statistic.tensor, rows.option.tensor, rows.key.tensor]
        constants = [shape.grad_dtype, shape.param_dtype, shape.format, shape.aligned]
        constants += [rows.rounds, shape.many, shape.block_rows, shape.rows, shape.cols]
        return Launch(self._update.update, len(table), fixed, constants)

    def _small_steps(self, unit: units.Units, found: PartLaunches) -> None:
        factors, count = self._factors, len(unit.units)
        table, owners = self._up(unit.units), self._up(unit.owners)
        saved = torch.zeros(len(owners), device=self._device)
        known: list[Tensor | int] = [self._matrix.tensor, self._statistic.tensor]
        options = self._matrices.option.tensor
        size = [unit.entries, unit.length]
        warps = WARPS.get(unit.length, 4)
        found.update_squares.append(
            Launch(factors.update_squares, count, [table, *known, options], size, warps)
        )
        if not unit.whole:
            fixed = [owners, saved, self._rms, *known, options]
            found.clip_batches.append(Launch(factors.clip_batches, len(owners), fixed, [4096], 8))
        fixed = [table, saved, self._rms, *known, options]
        found.update_confidence.append(
            Launch(factors.update_confidence, count, fixed, [unit.whole, unit.signs, *size], warps)
        )
        if unit.signs:
            found.keep_magnitudes.append(
                Launch(factors.keep_magnitudes, count, [table, *known], size, warps)
            )

    @cached_property
    def vectors(self) -> VectorLaunches:
        """The launches over all vectors."""
        with torch.device("cpu"):
            return self._prepare_vectors()

    def _prepare_vectors(self) -> VectorLaunches:
        rows, found = self._vector_rows, VectorLaunches([], [])
        numels = self._up(torch.tensor([float(task.param.numel) for task in rows.rows.tasks]))
        rms = self._rms[len(self._matrices.rows.tasks) :]
        for shape, table, num_parts, num_counters in units.vector_tiles(rows.rows):
            self._reserve(num_parts)
            tile, kinds = self._up(table), [shape.grad_dtype, shape.param_dtype]
            counters = torch.zeros(max(1, num_counters), dtype=torch.int32, device=self._device)
            fixed: list[Tensor | int] = [tile, counters, rows.address.tensor, rows.option.tensor]
            constants = [shape.grad_dtype, shape.cols]
            found.squares.append(
                Launch(self._vectors.add_vector_squares, len(table), fixed, constants)
            )
            fixed = [tile, numels, rms, rows.address.tensor, rows.box.tensor]
            fixed += [rows.option.tensor, rows.key.tensor]
            found.update.append(
                Launch(
                    self._vectors.apply_vector_update,
                    len(table),
                    fixed,
                    [*kinds, rows.rounds, shape.cols],
                )
            )
        return found

    def _chunks(self, numbers: int) -> int:
        """How large tiles are: a few programs for each multiprocessor, and no more."""
        if self._device.type == "cpu":
            return 1
        count = torch.cuda.get_device_properties(self._device).multi_processor_count
        chunks = max(1, numbers // (PROGRAMS * count * tiles.CHUNK))
        return min(max(1 << (chunks.bit_length() - 1), MIN_CHUNKS), MAX_CHUNKS)

    def _reserve(self, numbers: int) -> None:
        if self.scratch.numel() < numbers:
            self.scratch = torch.empty(numbers, device=self._device)

    def _up(self, table: Tensor) -> Tensor:
        return Mirror(table, self._device).tensor
