"""A memory checker for Triton's interpreter: every address read or written lies in a tensor."""

import gc
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from came.kernels.launches import Launch


class Storages:
    """The memory of all tensors there are; what lies inside another is left out."""

    def __init__(self) -> None:
        self._begins = self._ends = np.zeros(0, dtype=np.uint64)

    def look(self) -> None:
        spans = set()
        for thing in gc.get_objects():
            if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
                storage = thing.untyped_storage()
                spans.add((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
        outer: list[tuple[int, int]] = []
        for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            if not outer or end > outer[-1][1]:
                outer.append((begin, end))
        self._begins, self._ends = np.array(outer, dtype=np.uint64).T

    def check(self, pointers: Any, mask: Any) -> None:
        places, wanted = np.broadcast_arrays(pointers.data, mask.data.astype(bool))
        size = np.uint64(pointers.get_element_ty().primitive_bitwidth // 8)
        places = places[wanted]
        index = np.searchsorted(self._begins, places, side="right") - 1
        assert (index >= 0).all() and (places + size <= self._ends[index]).all(), "beside tensors"


def guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check all reads and writes from here on, at half the speed."""
    storages = Storages()
    launch, load = Launch.__call__, InterpreterBuilder.create_masked_load
    store = InterpreterBuilder.create_masked_store

    def looking(self: Launch, *moving: int) -> None:
        storages.look()
        launch(self, *moving)

    def loading(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        storages.check(pointers, mask)
        return load(self, pointers, mask, *rest)

    def storing(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        storages.check(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(Launch, "__call__", looking)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", loading)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", storing)
