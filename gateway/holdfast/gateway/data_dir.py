"""The data directory of a cluster on one machine: its layout, its lock, and where its processes are.

layout          the layout's version: another one is refused, never guessed at
lock            held (flock) by the `holdfast up` that uses the directory
cluster.json    what runs here and where, for `holdfast status` and its like; rewritten atomically
logs/           one file per process
nats/, etcd/    the data of the servers that Holdfast starts; of three in nats/1 to nats/3, and so on
"""

from __future__ import annotations

import fcntl
import os
from datetime import datetime
from pathlib import Path
from typing import IO, Self

import msgspec

from holdfast.core.errors import Misuse, WorldFailure

LAYOUT_VERSION = "1"
DEFAULT = Path(".holdfast")


class Member(msgspec.Struct, frozen=True):
    """A server, node or gateway that `up` started. `pid` is None while it is being restarted."""

    id: str
    pid: int | None
    url: str | None = None


class Service(msgspec.Struct, frozen=True):
    """A kind of server: its URLs, and its processes where they are ours (`embedded`), in the same order."""

    urls: list[str]
    embedded: bool
    servers: list[Member] = []


class ClusterFile(msgspec.Struct, frozen=True):
    """What runs in a data directory. `running` is false after an orderly end."""

    cluster: str
    version: str
    pid: int
    running: bool
    started_at: datetime
    lease_ttl_s: float
    nats: Service
    etcd: Service
    nodes: list[Member]
    gateways: list[Member]


class DataDirectory:
    """A data directory by path. `lock` it before writing anything into it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self.nats = self.path / "nats"
        self.etcd = self.path / "etcd"
        self._lock: IO[str] | None = None

    def logs_but_replicas(self) -> list[Path]:
        """The logs there are of servers, nodes, gateways and `up`."""
        from holdfast.actors.launcher import REPLICA_LOG

        return [path for path in self.logs.glob("*.log") if not REPLICA_LOG.fullmatch(path.name)]

    def lock(self) -> Self:
        """Create it if need be, and take it. Raises `Misuse` when another `up` has it, or its layout is not ours."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._check_layout()
            for folder in (self.logs, self.nats, self.etcd):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            self.unlock()
            raise Misuse(f"data directory {self.path}: {error.strerror}: choose another with --data-dir") from error
        except Misuse:
            self.unlock()
            raise
        return self

    def unlock(self) -> None:
        """Give it up. Does nothing when it is not held."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def read_cluster(self) -> ClusterFile | None:
        """What runs here or last ran here; None when nothing ever did. Raises `WorldFailure` for an unreadable file."""
        path = self._cluster_path
        try:
            return msgspec.json.decode(path.read_bytes(), type=ClusterFile)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise WorldFailure(f"{path} can't be read: {error}") from error

    def write_cluster(self, cluster: ClusterFile) -> None:
        """Replace the description as a whole, so that a reader never sees half of one."""
        draft = self._cluster_path.with_suffix(".json.new")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(cluster), indent=2) + b"\n")
        draft.replace(self._cluster_path)

    def in_use(self) -> bool:
        """Whether an `up` holds it now."""
        try:
            with (self.path / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @property
    def _cluster_path(self) -> Path:
        return self.path / "cluster.json"

    def _take_lock(self) -> None:
        self._lock = lock = (self.path / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip() or "unknown"
            raise Misuse(
                f"data directory {self.path} is in use by another `holdfast up` (process {pid}): "
                f"stop that one, or choose another with --data-dir"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()

    def _check_layout(self) -> None:
        path = self.path / "layout"
        if path.exists():
            found = path.read_text(errors="replace").strip()
            if found != LAYOUT_VERSION:
                raise Misuse(
                    f"data directory {self.path} has layout {found[:20]!r} and this Holdfast uses {LAYOUT_VERSION!r}: "
                    f"use the Holdfast that made it, or choose another with --data-dir"
                )
            return
        if any(entry.name not in ("lock", "layout") for entry in self.path.iterdir()):
            raise Misuse(
                f"{self.path} holds files but no Holdfast data: choose an empty or new directory with --data-dir"
            )
        path.write_text(LAYOUT_VERSION + "\n")
