"""Distances between trajectories, and a small run to the end."""

import json

import numpy as np
import pytest

from scripts import mlp_trajectories
from scripts.mlp_trajectories import IDEAL, OPTIMIZERS, OTHER_BATCHES, Setting, Trajectory

TINY = Setting(inputs=6, hidden=5, classes=3, samples=64, batch=8, steps=12, every=4)


def path(*points):
    return Trajectory(np.array(points, dtype=float), np.zeros(len(points)))


def test_distances_are_shares_of_adams_way():
    ideal = path((1, 1), (1, 3), (1, 5))
    assert mlp_trajectories.distances(ideal, ideal).tolist() == [0, 0]
    assert mlp_trajectories.distances(path((1, 1), (1, 1), (1, 1)), ideal).tolist() == [1, 1]
    turned = path((1, 1), (2, 1), (3, 1))
    assert mlp_trajectories.distances(turned, ideal) == pytest.approx([5**0.5 / 2, 20**0.5 / 4])
    assert mlp_trajectories.cosines(turned, ideal).tolist() == [0, 0]
    assert mlp_trajectories.cosines(path((1, 1), (1, 2), (1, 9)), ideal).tolist() == [1, 1]


def test_all_begin_at_one_place_and_see_the_same_batches():
    paths = {name: mlp_trajectories.train(TINY, 3, name, 1e-3) for name in OPTIMIZERS}
    again = mlp_trajectories.train(TINY, 3, "CAME", 1e-3)
    assert np.array_equal(again.weights, paths["CAME"].weights)
    for name, found in paths.items():
        assert found.weights.shape[0] == len(found.loss) == 4
        assert np.array_equal(found.weights[0], paths[IDEAL].weights[0])
        assert name == IDEAL or not np.array_equal(found.weights[1], paths[IDEAL].weights[1])
    # Of other batches Adam makes another way, in the same direction.
    assert 0.5 < mlp_trajectories.cosines(paths[OTHER_BATCHES], paths[IDEAL])[-1] < 1


def test_what_is_measured_is_drawn_from_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(mlp_trajectories, "MULTIPLES", (0.5, 1.0))
    found = json.loads(json.dumps(mlp_trajectories.measure(TINY, 2)))
    assert found["runs"].keys() == OPTIMIZERS.keys()
    for name, scores in found["distance_by_multiple_of_lr"].items():
        assert scores[str(found["multiple_of_lr"][name])] == min(scores.values())
    (first, second) = found["runs"][IDEAL]
    assert first["distance"] == [0, 0, 0] and len(first["x"]) == 4 and "x" not in second
    assert len(list(mlp_trajectories.table(found))) == 2 + len(OPTIMIZERS)
    mlp_trajectories.draw(found).savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
