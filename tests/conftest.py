"""What hypothesis draws for tests of properties, and the end of tests that hang for good.

Drawn is the same each time, wherever they run, unless other profiles are asked for: what has passed before it lands
passes afterwards, and a failure is there again. `--hypothesis-profile fresh` draws anew, to find what nobody has seen.

Some tests hang where `timeout` does not end them: in a thread, or while they clean up after their time was over. Then
all stacks are shown, and the process ends, so that the run fails instead of taking as long as it may.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

ON_ANY_MACHINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no failure."""

settings.register_profile("fresh", ON_ANY_MACHINE)
settings.register_profile("same", ON_ANY_MACHINE, derandomize=True, database=None, print_blob=True)
settings.load_profile("same")

# Hypothesis likes to draw constants of the modules that happen to be loaded, which tests before may have done.
pytest.MonkeyPatch().setattr(providers, "_get_local_constants", Constants)

CLEAN_UP_S = 300.0
"""After its time is over a test may take so much longer to clean up (seconds)."""

_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stderr] = os.dup(2)  # not captured yet


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_stderr])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    own = item.get_closest_marker("timeout")
    limit_s = float(own.args[0] if own is not None else item.config.getini("timeout")) + CLEAN_UP_S
    watchdog = threading.Timer(limit_s, _end, (item.config.stash[_stderr], f"{item.nodeid} hangs: {limit_s:g} s\n"))
    watchdog.daemon = True
    watchdog.start()
    try:
        return (yield)
    finally:
        watchdog.cancel()


def _end(stderr: int, text: str) -> None:
    os.write(stderr, text.encode())
    faulthandler.dump_traceback(stderr)
    os._exit(1)
