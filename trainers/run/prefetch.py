"""Work ahead of the loop, in a thread: the next item is made while the device computes."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from trainers.errors import DataError

Item = TypeVar("Item")

_POLL_SECONDS = 0.1  # how soon the thread sees that nobody wants its items any more
_CLOSE_SECONDS = 1.0  # for the item in hand; longer, a failing run would be silent about its cause


class Prefetch(Generic[Item]):
    """The items of `source` in order, made up to `depth` ahead in a thread of its own.

    With a depth of 0 there is no thread, and each is made when it is asked for.  An error in
    `source` is raised by the `next` that it would have answered.  `waited` are the seconds that
    the caller has spent in `next`, which raises DataError when an item that is made in the thread
    takes longer than `limit_seconds`.
    """

    def __init__(self, source: Iterator[Item], depth: int, limit_seconds: float) -> None:
        self.waited = 0.0
        self._limit = limit_seconds
        self._source = source
        self._items: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(max(depth, 1))
        self._unwanted = threading.Event()
        self._thread: threading.Thread | None = None
        if depth:
            self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
            self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        begin = time.perf_counter()
        try:
            if self._thread is None:
                return next(self._source)
            item, error = self._next_answer()
            if error is not None:
                self._items.put((item, error))  # it is also the answer to the next question
                raise error
            return item  # type: ignore[no-any-return]
        finally:
            self.waited += time.perf_counter() - begin

    def _next_answer(self) -> tuple[Any, BaseException | None]:
        try:
            return self._items.get(timeout=self._limit)
        except queue.Empty:
            error = DataError(
                f"no batch was made within runtime.timeout_seconds={self._limit:g}: reading the "
                "prepared data hangs; does the disk of data.cache_dir answer?"
            )
            error.everywhere = False  # the disks of other ranks may well answer
            raise error from None

    def _work(self) -> None:
        try:
            for item in self._source:
                if not self._hand_over((item, None)):
                    return
            error: BaseException = StopIteration()
        except BaseException as caught:
            error = caught
        self._hand_over((None, error))

    def _hand_over(self, answer: tuple[Any, BaseException | None]) -> bool:
        while not self._unwanted.is_set():
            try:
                self._items.put(answer, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def close(self) -> None:
        """End the thread after the item that it is making; one that hangs there is left behind."""
        self._unwanted.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def __enter__(self) -> "Prefetch[Item]":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
