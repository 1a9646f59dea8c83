"""CAME inside DeepSpeed equals the authors' package on one process."""

import pytest

from tests.came import deepspeed_cases
from tests.ranks import run_ranks


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_sharding_computes_came(world_size: int) -> None:
    run_ranks(deepspeed_cases.check_cases, world_size, tuple(deepspeed_cases.CASES))
