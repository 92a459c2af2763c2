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

from holdfast.simulations.world import guards
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

BOUND_BEFORE = {
    "time": frozenset(guards.CLOCKS),
    "random": frozenset(guards.CHANCE),
    "os": frozenset({"urandom", "getrandom"}),
    "uuid": frozenset({"uuid1"}),
    "_thread": frozenset({"start_new_thread"}),
}
"""What guards replace in its module: whoever has it already, from an import or for a default, goes past them."""

TORCH = "holdfast.actors.engines.torch"
"""No part of a simulation, though other tests may have imported it."""

TOOLS = (
    *("holdfast.gateway.bring_up", "holdfast.gateway.local_cluster", "holdfast.gateway.cli", TORCH),
    "holdfast.actors.clock",
)
"""Nor are these, but for `actors.clock`, whose business it is."""

WITH_DEFAULTS = {
    *("holdfast.gateway.machine", "holdfast.gateway.asking", "holdfast.gateway.generate"),
    *("holdfast.gateway.client.asynchronous", "holdfast.gateway.client.blocking"),
}
"""These take clocks and chance from who calls them, and have the real ones by default. Simulations give others, and
don't call the last two."""

OF_THE_SIMULATION = "holdfast.simulations"
"""Measures its own runs by the real clock, outside of them."""


def escapes(source: str, *, has_defaults: bool = False) -> list[int]:
    """The lines of a module that ask for the date, or take a function before it is guarded, unless by default."""
    tree, found = ast.parse(source), list[int]()
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    defaults = _defaults(tree) if has_defaults else set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if (owner, name) in ESCAPING_CALLS:
                found.append(node.lineno)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if id(node) not in called | defaults:
                found += [node.lineno] * (name in BOUND_BEFORE.get(owner, ()))
            case ast.ImportFrom(module=str(owner), names=names):
                found += [node.lineno for one in names if one.name in BOUND_BEFORE.get(owner, ())]
    return found


def _defaults(tree: ast.AST) -> set[int]:
    """What stands for arguments and fields that nobody gives."""
    found = set[int]()
    for node in ast.walk(tree):
        match node:
            case ast.arguments(defaults=values, kw_defaults=more):
                found |= {id(value) for value in (*values, *more)}
            case ast.ClassDef(body=body):
                found |= {id(line.value) for line in body if isinstance(line, ast.AnnAssign)}
    return found


@pytest.mark.parametrize(
    "source",
    [
        "from time import monotonic",
        "from time import sleep, time as now",
        "def f():\n    from time import perf_counter\n    return perf_counter()",
        "from random import choice",
        "from os import path, urandom",
        "import time\ndef f(clock=time.monotonic): ...",
        "import time\nclass A:\n    clock = time.time",
        "from datetime import datetime\ndatetime.now()",
        "from datetime import datetime\nclock = datetime.now",
    ],
)
def test_what_would_go_past_the_guards_is_found(source: str) -> None:
    assert escapes(source) != []


def test_what_the_guards_see_or_what_asks_nobody_is_left_alone() -> None:
    sound = "import time\nfrom time import struct_time\nfrom random import Random\nprint(time.monotonic(), Random(1))"
    assert escapes(sound) == []


def test_defaults_pass_where_they_may_and_nothing_else() -> None:
    default = (
        "import time\ndef f(clock=time.monotonic, *, ask=time.time): ...\nclass A:\n    clock: Clock = time.monotonic"
    )
    assert escapes(default) == [2, 2, 4]
    assert escapes(default, has_defaults=True) == []
    assert escapes("import time\nclock = time.monotonic", has_defaults=True) == [2]


def test_simulated_modules_never_ask_for_the_date_by_themselves_nor_hold_a_clock() -> None:
    __import__("holdfast.simulations.simulation")
    found, seen = [], set[str]()
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not name.startswith("holdfast.") or name.startswith((OF_THE_SIMULATION, *TOOLS)) or file is None:
            continue
        seen.add(name.split(".")[1])
        lines = escapes(Path(file).read_text(), has_defaults=name in WITH_DEFAULTS)
        found += [f"{name}:{line}" for line in lines]
    assert found == []
    assert seen >= {"core", "actors", "gateway", "store"}
