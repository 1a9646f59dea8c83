"""This rank's part of a checkpoint: copied to the host while a step computes, written from there.

The copy lies in one buffer in the order of the file, so that writing is no second copy, and the
buffer is kept for the next one: memory that is new to a process costs more than the copy.

    | 8 bytes: length | header: names, types, places | data: largest items first |    safetensors
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.errors import StorageError
from trainers.faults import fault
from trainers.run.manifest import BUFFER, FileRecord

_PIECE = 16 << 20  # bytes written and hashed at a time, so that a cache holds them for both
_LOOK = 1 << 20  # bytes looked at in one go, a multiple of every item
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# The bits of an exponent: all are set in what is no number, and in nothing else.
_EXPONENTS: dict[torch.dtype, Any] = {
    torch.float64: np.uint64(0x7FF0_0000_0000_0000),
    torch.float32: np.uint32(0x7F80_0000),
    torch.float16: np.uint16(0x7C00),
    torch.bfloat16: np.uint16(0x7F80),
}


class Snapshot:
    """A copy of tensors on the host; `copy` replaces it, also that which is being written."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._header = b""
        self._numbers: dict[str, tuple[torch.dtype, int, int]] = {}  # that must be finite
        self._buffer = torch.empty(0, dtype=torch.uint8)

    @property
    def num_bytes(self) -> int:
        """Of the data."""
        return self._buffer.numel()

    def begin(self, tensors: Mapping[str, Tensor]) -> None:
        """Name the flat tensors that `copy`, maybe of another thread, is to copy."""
        # Items of eight bytes before those of four, and so on: each then lies where its type may.
        names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
        self._tensors = {name: _kept(name, tensors[name]) for name in names}
        # On a GPU the copy begins where the work that makes their values ends.
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
            self._streams[device].wait_stream(torch.cuda.current_stream(device))

    def copy(self) -> None:
        """Copy the tensors; when this returns they may change."""
        tensors, self._tensors = self._tensors, {}
        places, at = {}, 0
        for name, tensor in tensors.items():
            size = tensor.numel() * tensor.dtype.itemsize
            places[name] = (at, at + size)
            at += size
        if self._buffer.numel() != at:
            self._buffer = torch.empty(at, dtype=torch.uint8, pin_memory=bool(self._streams))
        try:
            for device, stream in self._streams.items():  # each thread has current ones of its own
                torch.cuda.set_device(device)
                torch.cuda.set_stream(stream)
            for name, (begin, end) in places.items():
                if begin < end:
                    _copy(tensors[name], self._buffer[begin:end])
        finally:
            for stream in self._streams.values():
                stream.synchronize()
        # Last: Python would keep the thread that trains from running while this one runs it.
        self._header = _header(tensors, places)
        self._numbers = {
            name: (tensor.dtype, *places[name])
            for name, tensor in tensors.items()
            if tensor.dtype in _EXPONENTS and not name.startswith(BUFFER)
        }

    def write(self, path: Path) -> FileRecord:
        """Write the copy as a safetensors file and force it to the disk.

        Raises OSError, and StorageError where a value is none that could be loaded again.
        """
        self._check_finite()
        digest = hashlib.sha256()
        data = memoryview(self._buffer.numpy())
        pieces = [data[begin : begin + _PIECE] for begin in range(0, len(data), _PIECE)]
        with open(path, "wb") as file:
            for number, piece in enumerate((self._header, *pieces)):
                file.write(piece)
                digest.update(piece)
                if number == 1:
                    fault(f"part {path.parent.name}/{path.name}")
            file.flush()
            os.fsync(file.fileno())
        return FileRecord(digest.hexdigest(), len(self._header) + len(data))

    def _check_finite(self) -> None:
        """By numpy and in pieces: torch would take the threads of the training for it."""
        for name, (dtype, begin, end) in self._numbers.items():
            exponent = _EXPONENTS[dtype]
            for start in range(begin, end, _LOOK):
                bits = self._buffer[start : min(start + _LOOK, end)].numpy().view(exponent.dtype)
                if ((bits & exponent) == exponent).any():
                    raise StorageError(f"{name} has values that are not finite")


def _kept(name: str, tensor: Tensor) -> Tensor:
    """What stays as it is until the next update; buffers may change before, and are small."""
    return tensor.detach().clone() if name.startswith(BUFFER) else tensor.detach()


def _copy(tensor: Tensor, into: Tensor) -> None:
    if tensor.device.type == "cpu" and tensor.is_contiguous():
        # By numpy: torch would take the threads of the step that is being computed.
        np.copyto(into.numpy(), tensor.view(torch.uint8).numpy())
    else:
        into.view(tensor.dtype).copy_(tensor, non_blocking=True)


def _header(tensors: Mapping[str, Tensor], places: Mapping[str, tuple[int, int]]) -> bytes:
    table = {
        name: {
            "dtype": _NAMES[tensor.dtype],
            "shape": [tensor.numel()],
            "data_offsets": list(places[name]),
        }
        for name, tensor in tensors.items()
    }
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of eight
    return len(text).to_bytes(8, "little") + text
