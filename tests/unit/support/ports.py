"""Ports for tests."""

from __future__ import annotations

import os

from holdfast.store import embedded

TRIES_MAX = 1_000


def free_port() -> int:
    """A loopback port that nobody listens on, no client's connection gets, and no other worker of this run is given."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    found = (embedded.free_port() for _ in range(TRIES_MAX))
    return next(port for port in found if port % workers == worker)
