"""The cluster that the long run is about: `holdfast up` in a directory that is kept, its processes, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import msgspec
import psutil

from examples.bench.chaos.victims import Kind, Process, View
from holdfast.gateway.data_dir import ClusterFile, DataDirectory
from holdfast.gateway.leftovers import find_marked, kill_marked
from holdfast.store.embedded import free_ports

ITL_MS: Final = 6
"""The mock engine's time between two tokens."""

START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 30.0
"""An orderly end is given so long: `up` itself keeps to less."""

HEALTH_TIMEOUT_S: Final = 1.0
POLL_S: Final = 0.1


class Size(msgspec.Struct, frozen=True):
    """How many of each there are."""

    nodes: int
    replicas: int
    gateways: int


class Memory(msgspec.Struct, frozen=True):
    """What a process holds resident (MiB), and how long it has lived (seconds)."""

    process: str
    mib: float
    age_s: float


class Failed(Exception):
    """The cluster did not come up, or `up` ended by itself. The text says what it said last."""


class Cluster:
    """A running `holdfast up`. Use `start` and, whatever happens, `stop`."""

    def __init__(self, directory: Path, size: Size) -> None:
        self.size = size
        self.directory = DataDirectory(directory / "data")
        self.frozen: set[int] = set()
        self._output = directory / "up.txt"
        self._port = free_ports(size.gateways)
        self._process: asyncio.subprocess.Process | None = None
        self._http = httpx.AsyncClient(timeout=HEALTH_TIMEOUT_S, trust_env=False)

    @property
    def urls(self) -> dict[str, str]:
        """Where each gateway is."""
        return {f"gateway-{n + 1}": f"http://127.0.0.1:{self._port + n}" for n in range(self.size.gateways)}

    def description(self) -> ClusterFile:
        """What `up` wrote of it."""
        found = self.directory.read_cluster()
        assert found is not None, "a cluster that runs has described itself"
        return found

    async def start(self) -> None:
        """Until every gateway reaches every replica. Raises `Failed`."""
        size = self.size
        command = [sys.executable, "-m", "holdfast.gateway.cli", "up", "--engine", "mock"]
        command += ["--engine-args", json.dumps({"itl_ms": ITL_MS}), "--port", str(self._port)]
        command += ["--replicas", str(size.replicas), "--nodes", str(size.nodes), "--gateways", str(size.gateways)]
        command += ["--data-dir", str(self.directory.path)]
        with self._output.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        if not await self.strong_within(START_TIMEOUT_S, 0):
            raise Failed(f"the cluster was not ready within {START_TIMEOUT_S:g} s: {self._last_words()}")

    async def strong_within(self, timeout_s: float, settled_s: float) -> bool:
        """Wait until everything has been there for `settled_s`; whether that came. Raises `Failed`."""
        now_s = time.monotonic
        deadline_s, since_s = now_s() + timeout_s, now_s()
        while now_s() < deadline_s:
            if self.lacking(await self.view()):
                since_s = now_s()
            elif now_s() - since_s >= settled_s:
                return True
            await asyncio.sleep(POLL_S)
        return False

    def lacking(self, view: View) -> str:
        """What is missing for full strength, in words; "" if nothing is."""
        size = self.size
        wanted = {Kind.NODE: size.nodes, Kind.REPLICA: size.replicas, Kind.GATEWAY: size.gateways}
        wanted |= {Kind.NATS: 1, Kind.ETCD: 1}
        short = [
            f"{count} of kind {kind}, not {due}"
            for kind, due in wanted.items()
            if (count := sum(process.kind is kind for process in view.processes)) != due
        ]
        short += [
            f"{name} reaches {view.ready.get(name, 0)} replicas"
            for name in self.urls
            if view.ready.get(name) != size.replicas
        ]
        return "; ".join(short)

    async def view(self) -> View:
        """The cluster now. Raises `Failed` if `up` has ended."""
        if self._process is None or self._process.returncode is not None:
            raise Failed(f"`holdfast up` ended by itself: {self._last_words()}")
        processes = await asyncio.to_thread(lambda: list(find_processes(self.directory.path)))
        frozen = frozenset(self.frozen)
        thawed = [p.name for p in processes if p.kind is Kind.GATEWAY and p.pid not in frozen]
        answers = await asyncio.gather(*(self._ready(name) for name in thawed))
        ready = {name: count for name, count in zip(thawed, answers, strict=True) if count is not None}
        return View(processes, ready, frozen)

    def memory(self) -> list[Memory]:
        """Of `up` and what it keeps."""
        rows = []
        kept = [Process(Kind.NODE, "up", self._process.pid, 0, 0.0)] if self._process is not None else []
        kept += [p for p in find_processes(self.directory.path) if p.kind is not Kind.REPLICA]
        for process in sorted(kept, key=lambda p: p.name):
            with contextlib.suppress(psutil.Error):
                found = psutil.Process(process.pid)
                age_s = time.time() - found.create_time()
                rows.append(Memory(process.name, found.memory_info().rss / 2**20, age_s))
        return rows

    async def idle_within(self, timeout_s: float) -> str:
        """Wait until the gateways have no stream any more; what they still have, in words."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            open_ones = [text for name in self.urls if (text := await self._open(name))]
            if not open_ones or time.monotonic() > deadline_s:
                return "; ".join(open_ones)
            await asyncio.sleep(POLL_S)

    async def stop(self) -> list[str]:
        """Ctrl-C, and what was not as it should be about the end: exit code, processes left over. Kills those."""
        await self._http.aclose()
        process, said = self._process, []
        if process is None:
            return []
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                code = await process.wait()
            if code != 0:
                said.append(f"`holdfast up` ended with {code} after Ctrl-C: {self._last_words()}")
        except TimeoutError:
            said.append(f"`holdfast up` did not end within {STOP_TIMEOUT_S:g} s of Ctrl-C: {self._last_words()}")
            process.kill()
            await process.wait()
        return said + [f"left over: {one}" for one in end_leftovers(self.directory.path)]

    async def _ready(self, gateway: str) -> int | None:
        """How many replicas a gateway can send streams to; None if it does not answer."""
        return await self._sum(gateway, "replicas_ready")

    async def _open(self, gateway: str) -> str:
        """What a gateway has under way, in words; "" for nothing."""
        counts = {name: await self._sum(gateway, name) for name in ("in_flight", "queued")}
        return "" if not any(counts.values()) else f"{gateway} has {counts}"

    async def _sum(self, gateway: str, name: str) -> int | None:
        """One of the counts of a gateway's /health, over all models; None if it does not answer."""
        try:
            answer = await self._http.get(f"{self.urls[gateway]}/health")
            return sum(int(model[name]) for model in answer.json()["details"]["models"].values())
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return self._output.read_text(errors="replace")[-2000:]
        return "(nothing)"


def find_processes(data_dir: Path) -> Iterator[Process]:
    """The processes of the cluster that carry its mark, without `up` itself and those that are still being started."""
    for pid in find_marked(data_dir):
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(pid)
            with found.oneshot():
                named = name_process(found.cmdline())
                if named is not None and found.status() != psutil.STATUS_ZOMBIE:
                    yield Process(*named, pid, found.ppid(), found.create_time())


def name_process(command: list[str]) -> tuple[Kind, str] | None:
    """Which process of a cluster a command line is."""
    match command:
        case [_, "-m", "holdfast.actors.replica_main", name]:
            return Kind.REPLICA, name
        case [_, "-m", "holdfast.gateway.cli", "node", name, *_]:
            return Kind.NODE, name
        case [_, "-m", "holdfast.gateway.cli", "gateway", name, *_]:
            return Kind.GATEWAY, name
        case [path, *_] if Path(path).name in (Kind.NATS, Kind.ETCD):
            return Kind(Path(path).name), Path(path).name
    return None


def end_leftovers(data_dir: Path) -> list[str]:
    """Kill what carries the mark of a cluster that has ended; what that was."""
    left = [describe_process(pid) for pid in find_marked(data_dir)]
    kill_marked(data_dir)
    return left


def describe_process(pid: int) -> str:
    """A process for people: id, state, command line."""
    try:
        found = psutil.Process(pid)
        return f"process {pid} ({found.status()}): {' '.join(found.cmdline())[:200]}"
    except psutil.Error:
        return f"process {pid}, which ended meanwhile"


def send(process: Process, what: signal.Signals) -> bool:
    """Signal it, if it is still the one that was meant."""
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        if psutil.Process(process.pid).create_time() == process.born_s:
            os.kill(process.pid, what)
            return True
    return False
