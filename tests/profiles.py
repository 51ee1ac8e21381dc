"""How thoroughly properties are tried, and how tests that run side by side share the machine.

`HYPOTHESIS_PROFILE` names the profile; without it, `ci` where `CI` is set, else `fast`.
"""

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

# A first example may import torch; what is too slow is decided by the limits of the tiers.
settings.register_profile("fast", max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("fast"), max_examples=60, derandomize=True, database=None)
settings.register_profile("thorough", settings.get_profile("fast"), max_examples=400)
settings.register_profile("fuzz", settings.get_profile("fast"), max_examples=10_000)  # of each of the seeds
settings.register_profile("nightly", settings.get_profile("fast"), max_examples=200_000)

settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "fast"))


def pytest_configure(config: pytest.Config) -> None:
    """Gives each worker of pytest-xdist one torch thread: two workers with all threads each are slower than one.

    Set before the workers start, so that it holds whatever they import first, and for the programs they run.
    """
    if config.getoption("numprocesses", default=None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


OFTEN = 100


def pytest_collection_finish() -> None:
    """Spares every collection of garbage a look at the libraries and tests that are there from now on: each run of a
    training has several, which took longer than a small training itself.
    """
    _keep_what_is_there()


def pytest_runtest_logfinish(location: tuple[str, int | None, str]) -> None:
    """The same, now and then, of what tests import and pytest notes on the way."""
    _done[0] += 1
    if _done[0] % OFTEN == 0:
        _keep_what_is_there()


_done = [0]


def _keep_what_is_there() -> None:
    gc.collect()
    gc.freeze()
