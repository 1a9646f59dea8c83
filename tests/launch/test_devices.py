"""Counting GPUs without torch: the variables that torch and DeepSpeed obey are obeyed here too."""

import pytest

from launch import devices


@pytest.fixture(autouse=True)
def torch_with_cuda(monkeypatch):
    monkeypatch.setattr(devices, "version", lambda package: "2.13.0")


@pytest.fixture
def machine_with_two_gpus(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 2),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, 1),
        ({"DS_ACCELERATOR": "cpu"}, 0),
    ],
)
def test_gpus_are_those_torch_would_see(environ, expected, machine_with_two_gpus):
    assert devices.num_gpus(environ, machine_with_two_gpus) == expected


def test_a_torch_built_for_cpus_has_no_gpus(monkeypatch, machine_with_two_gpus):
    monkeypatch.setattr(devices, "version", lambda package: "2.13.0+cpu")
    assert devices.num_gpus({}, machine_with_two_gpus) == 0


def test_two_processes_on_a_machine_without_gpus():
    assert devices.default_processes({"DS_ACCELERATOR": "cpu"}) == 2
