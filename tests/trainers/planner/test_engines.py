"""The plan's memory is that of DeepSpeed's engines."""

from tests.ranks import run_ranks
from tests.trainers.planner import engines


def test_what_is_kept_all_the_time() -> None:
    run_ranks(engines.check_settings, 2)
