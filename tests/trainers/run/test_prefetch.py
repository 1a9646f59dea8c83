"""Items made ahead: the same ones, in order, with their errors, and no thread left behind."""

import threading
import time
from collections.abc import Iterator

import pytest

from trainers.errors import DataError
from trainers.run.prefetch import Prefetch


def numbers(count: int, made: list[int]) -> Iterator[int]:
    for number in range(count):
        made.append(number)
        yield number


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_same_items_in_order(depth: int) -> None:
    with Prefetch(numbers(100, []), depth, 60) as ahead:
        assert list(ahead) == list(range(100))
        assert list(ahead) == []
    assert threads() == 0


def test_it_runs_ahead_as_far_as_asked() -> None:
    made: list[int] = []
    with Prefetch(numbers(100, made), 2, 60) as ahead:
        assert next(ahead) == 0
        for _ in range(100):
            if len(made) == 4:
                break
            time.sleep(0.01)
        time.sleep(0.05)
        assert made == [0, 1, 2, 3]  # one taken, two waiting, and one in hand


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_arrives_in_its_place_and_in_its_words(depth: int) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with Prefetch(broken(), depth, 60) as ahead:
        assert next(ahead) == 1
        with pytest.raises(OSError, match="the disk is gone"):
            next(ahead)
        with pytest.raises((OSError, StopIteration)):
            next(ahead)  # and it does not hang
    assert threads() == 0


def test_the_thread_ends_with_items_that_nobody_took() -> None:
    with pytest.raises(KeyboardInterrupt), Prefetch(numbers(10**9, []), 2, 60) as ahead:
        next(ahead)
        raise KeyboardInterrupt
    assert threads() == 0


def test_waiting_is_timed() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.05)
            yield number

    with Prefetch(slow(), 2, 60) as ahead:
        assert list(ahead) == [0, 1, 2]
        assert ahead.waited > 0.1
        before = ahead.waited
        time.sleep(0.05)
        assert ahead.waited == before


def test_a_source_that_hangs_is_told_and_left_behind() -> None:
    """Nothing is said about an error before this has ended."""
    release = threading.Event()

    def hanging() -> Iterator[int]:
        yield 1
        release.wait(60)

    begin = time.monotonic()
    try:
        with (
            pytest.raises(DataError, match=r"timeout_seconds=0.2: .*data.cache_dir") as told,
            Prefetch(hanging(), 2, 0.2) as ahead,
        ):
            assert next(ahead) == 1
            next(ahead)
        assert time.monotonic() - begin < 5
        assert not told.value.everywhere  # each rank that it happens to says so
    finally:
        release.set()
