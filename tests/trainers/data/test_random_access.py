import numpy as np
import pytest

from trainers.data.random_access import below, hash64, permute, uniform


def test_values_are_frozen():
    """A run that is resumed with a later version must see the same samples."""
    assert [hex(int(value)) for value in hash64(1, 2, np.array([3, -1]))] == [
        "0xeabcfa2c623c5a59",
        "0x9e41cb8568fd129e",
    ]
    assert permute(np.arange(10), 10, 7).tolist() == [4, 5, 2, 6, 0, 3, 9, 7, 8, 1]


def test_order_and_number_of_parts_matter():
    values = [hash64(1, 2), hash64(2, 1), hash64(1), hash64(1, 2, 0), hash64(0, 1, 2), hash64(3)]
    assert len({int(value[0]) for value in values}) == len(values)


def test_broadcast_equals_one_by_one():
    rows, columns = np.array([[3], [-5], [2**62]]), np.arange(7)
    table = hash64(11, rows, columns)
    assert table.shape == (3, 7)
    for i, row in enumerate(rows[:, 0]):
        for j in range(7):
            assert table[i, j] == hash64(11, int(row), j)[0]


def test_parts_are_not_changed():
    part = np.arange(5, dtype=np.uint64)
    hash64(part, part)
    assert part.tolist() == [0, 1, 2, 3, 4]


def test_uniform_is_uniform_and_uncorrelated():
    values = uniform(5, np.arange(100_000))
    assert values.min() >= 0 and values.max() < 1
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi squared, 99 degrees: p = 1e-4
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.015


def test_every_input_bit_changes_half_of_the_output_bits():
    base = np.arange(500)
    for bit in range(0, 63, 7):
        changed = hash64(9, base) ^ hash64(9, base ^ (1 << bit))
        share = np.unpackbits(changed.view(np.uint8)).mean()
        assert abs(share - 0.5) < 0.02


def test_below_takes_arrays_of_bounds():
    values = below(np.array([1, 2, 1000]), np.arange(3000).reshape(-1, 3))
    assert (values < [1, 2, 1000]).all() and (values >= 0).all()
    assert abs(values[:, 1].mean() - 0.5) < 0.06 and abs(values[:, 2].mean() - 499.5) < 40


@pytest.mark.parametrize("size", [*range(1, 40), 97, 100, 1023, 1024, 1025, 99_991])
def test_permute_is_a_bijection(size):
    assert np.array_equal(np.sort(permute(np.arange(size), size, 3, size)), np.arange(size))


def test_permutations_of_many_keys_reach_every_place_alike():
    """Over 6000 keys each of 8 indices lands on each place about 750 times."""
    places = permute(np.arange(8), 8, np.arange(6000)[:, None])
    for index in range(8):
        counts = np.bincount(places[:, index], minlength=8)
        assert ((counts - 750) ** 2 / 750).sum() < 30  # chi squared, 7 degrees: p = 1e-4


def test_permute_leaves_no_trace_of_the_order():
    places = permute(np.arange(10_000), 10_000, 1)
    assert abs(np.corrcoef(places, np.arange(10_000))[0, 1]) < 0.04
    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.04


def test_permute_takes_a_key_for_each_index():
    index, epoch = np.array([5, 5, 0]), np.array([0, 1, 1])
    together = permute(index, 50, 3, epoch)
    apart = [permute(int(i), 50, 3, int(e))[0] for i, e in zip(index, epoch, strict=True)]
    assert together.tolist() == apart


@pytest.mark.parametrize(("index", "size"), [(5, 5), (-1, 5), (0, 0)])
def test_permute_refuses_an_index_outside(index, size):
    with pytest.raises(ValueError, match=rf"\[0, {size}\)"):
        permute(index, size, 1)
