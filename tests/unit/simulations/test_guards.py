"""What would let the real world into a run raises."""

from __future__ import annotations

import _thread
import ast
import logging
import os
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.simulations.world.guards import LeftTheSimulation, sealed

ESCAPES: list[Callable[[], object]] = [
    time.time,
    time.monotonic,
    time.perf_counter,
    lambda: time.sleep(0),
    socket.socket,
    lambda: socket.getaddrinfo("localhost", 80),
    lambda: threading.Thread(target=print).start(),
    lambda: subprocess.run(["true"], check=True),
    lambda: os.urandom(8),
    lambda: secrets.token_hex(8),
    lambda: random.random(),
    lambda: random.Random(),
    lambda: random.SystemRandom().random(),
    lambda: random.gauss(0.0, 1.0),
    lambda: random.randbytes(4),
    lambda: random.seed(1),
    lambda: os.getrandom(4),
    uuid.uuid4,
    lambda: uuid.uuid1(),
    lambda: time.clock_gettime(time.CLOCK_REALTIME),
    lambda: time.process_time(),
    lambda: time.localtime(),
    lambda: time.strftime("%S"),
    lambda: _thread.start_new_thread(print, ()),
    socket.gethostname,
    lambda: os.kill(os.getpid(), 0),
]


@pytest.mark.parametrize("escape", range(len(ESCAPES)))
def test_leaving_the_simulation_raises(escape: int) -> None:
    name = ESCAPES[escape]
    # Looked up again within: the functions of modules are replaced there.
    call = {0: lambda: time.time(), 1: lambda: time.monotonic(), 2: lambda: time.perf_counter()}.get(escape, name)
    with sealed(lambda: 0.0), pytest.raises(LeftTheSimulation):
        call()


def test_everything_is_as_before_afterwards() -> None:
    with sealed(lambda: 0.0):
        pass
    assert time.time() > 1e9
    assert random.Random().random() < 1
    assert len(os.urandom(3)) == 3


def test_log_records_have_the_virtual_time() -> None:
    with sealed(lambda: 12.5):
        record = logging.LogRecord("holdfast", logging.INFO, __file__, 1, "text", None, None)
    assert record.created == 12.5


ESCAPING_CALLS = {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}
"""What no guard sees: a type's own methods can't be replaced."""

TORCH = "holdfast.actors.engines.torch"
"""No part of a simulation, though other tests may have imported it."""

CLOCKS = {"holdfast.actors.clock"}
"""Whose business it is."""


def test_simulated_modules_never_ask_for_the_date_by_themselves() -> None:
    __import__("holdfast.simulations.simulation")
    found = []
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not name.startswith("holdfast.") or name in CLOCKS or file is None:
            continue
        for node in ast.walk(ast.parse(Path(file).read_text())):
            match node:
                case ast.Attribute(value=ast.Name(id=owner), attr=attribute) if (owner, attribute) in ESCAPING_CALLS:
                    found.append(f"{name}:{node.lineno}")
    tools = ("holdfast.gateway.bring_up", "holdfast.gateway.local_cluster", "holdfast.gateway.cli", TORCH)
    assert [place for place in found if not place.startswith(tools)] == []
