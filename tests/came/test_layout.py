"""The geometry by property: every number of every parameter lies in exactly one place."""

import random

import pytest

from came.layout import (
    EachSplit,
    FlatSplit,
    Fragment,
    Param,
    ShardLayout,
    boxes,
    packed_offsets,
    whole,
)

NUM_CASES = 2000


def random_shape(rng: random.Random) -> tuple[int, ...]:
    dims = rng.choice([0, 1, 1, 2, 2, 2, 3, 4])
    return tuple(rng.randint(1, 9) for _ in range(dims))


def random_params(rng: random.Random) -> tuple[Param, ...]:
    return tuple(Param(str(i), random_shape(rng)) for i in range(rng.randint(1, 6)))


def random_flat_split(rng: random.Random, params: tuple[Param, ...]) -> FlatSplit:
    """Parameters one behind the other with random gaps, in slices with padding at the end."""
    offsets, at = [], 0
    for param in params:
        offsets.append(at)
        at += param.numel + rng.choice([0, 0, rng.randint(1, 8)])
    world_size = rng.randint(1, 7)
    slice_numel = -(-at // world_size) + rng.choice([0, rng.randint(0, 5)])
    numels = tuple(param.numel for param in params)
    return FlatSplit(numels, tuple(offsets), slice_numel, world_size)


def covered(split: FlatSplit | EachSplit, param: int) -> list[int]:
    """The elements of a parameter that the ranks hold, in the order of ranks and fragments."""
    return [
        element
        for rank in range(split.world_size)
        for piece in split.fragments(rank)
        if piece.param == param
        for element in range(piece.start, piece.start + piece.numel)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_every_element_of_a_flat_split_is_held_once(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(NUM_CASES // 4):
        params = random_params(rng)
        split = random_flat_split(rng, params)
        for index, param in enumerate(params):
            assert covered(split, index) == list(range(param.numel))
        for rank in range(split.world_size):
            for piece in split.fragments(rank):
                # where the whole buffer has it, minus where this rank's slice begins
                at = split.offsets[piece.param] + piece.start - rank * split.slice_numel
                assert piece.offset == at
                assert at >= 0 and at + piece.numel <= split.slice_numel


@pytest.mark.parametrize("seed", range(4))
def test_every_element_of_an_each_split_is_held_once(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(NUM_CASES // 4):
        params = random_params(rng)
        split = EachSplit(tuple(param.numel for param in params), rng.randint(1, 7))
        for index, param in enumerate(params):
            assert covered(split, index) == list(range(param.numel))
        parts = [-(-param.numel // split.world_size) for param in params]
        for rank in range(split.world_size):
            for piece in split.fragments(rank):
                assert piece.offset == sum(parts[: piece.param])


@pytest.mark.parametrize("seed", range(4))
def test_owners_are_the_ranks_with_a_fragment(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(NUM_CASES // 4):
        params = random_params(rng)
        numels = tuple(param.numel for param in params)
        for split in (random_flat_split(rng, params), EachSplit(numels, rng.randint(1, 7))):
            for index in range(len(params)):
                holders = [
                    rank
                    for rank in range(split.world_size)
                    if any(piece.param == index for piece in split.fragments(rank))
                ]
                assert list(split.owners(index)) == holders


@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_the_fragment_element_by_element(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(NUM_CASES):
        param = Param("w", tuple(rng.randint(1, 7) for _ in range(rng.randint(2, 4))))
        start = rng.randrange(param.numel)
        piece = Fragment(0, start, rng.randint(1, param.numel - start), rng.randint(0, 20))
        _, rows, cols = param.matrices
        elements = []
        for box in boxes(param, piece):
            # a box that does not take whole rows is one row; whole matrices if several of them
            assert box.cols == cols or (box.rows == 1 and box.batches == 1)
            assert box.rows == rows or box.batches == 1
            for at in range(box.numel):
                batch, inside = divmod(at, box.rows * box.cols)
                row, col = divmod(inside, box.cols)
                matrix = (box.batch + batch) * rows + box.row + row
                elements.append((box.offset + at, matrix * cols + box.col + col))
        expected = [(piece.offset + i, piece.start + i) for i in range(piece.numel)]
        assert elements == expected
        assert len(list(boxes(param, piece))) <= (3 if len(param.shape) == 2 else 5)


def test_a_whole_parameter_is_one_fragment_and_one_box() -> None:
    layout = whole(Param("w", (4, 5)))
    assert layout.whole
    assert layout.fragments == (Fragment(0, 0, 20, 0),)
    assert [box.numel for box in boxes(layout.params[0], layout.fragments[0])] == [20]


def test_a_sharded_parameter_is_not_whole() -> None:
    param = Param("w", (4, 5))
    assert not ShardLayout((param,), EachSplit((20,), 2), 0).whole


def test_packed_offsets() -> None:
    assert packed_offsets([3, 0, 5]) == (0, 3, 3)
