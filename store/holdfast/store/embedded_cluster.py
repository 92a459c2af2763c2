"""Our own servers as a set: one of a kind, or three that go on while any one of them is down.

**What stays with the data.** A cluster's members know each other by name and by peer address: JetStream's meta group
by server name, etcd's by what its data says, which only a member that runs can change. So a set of three has a
note beside its data, `servers.json`, with the cluster's name and all ports, written before the first start. A single
server has its data in the folder itself, a member in a folder of its number. One can't be made into the
other: who asks for another number than there is data of is refused.

Ports that clients dial, and the routes of nats-servers, are chosen anew where somebody else has taken them. The peer
ports of etcd are not: a member whose port is taken can't start until that is given up.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec

from holdfast.core.errors import WorldFailure
from holdfast.store.embedded import (
    NATS_CONFIG,
    PORTS,
    ChildProcess,
    Membership,
    can_have,
    etcd_server,
    free_port,
    nats_server,
)

Count = Literal[1, 3]
THREE: Final = 3

NOTE = "servers.json"
SINGLE_DATA = ("jetstream", "etcd")
"""Where a single server keeps its data, in its folder: nats-server, etcd."""


class Note(msgspec.Struct, frozen=True):
    """A set of servers: its name, and the ports of each, for clients and for its peers."""

    cluster: str
    client_ports: list[int]
    peer_ports: list[int]


def count_with_data(folder: Path) -> Count | None:
    """How many servers have their data in this folder; None where none has."""
    if (folder / NOTE).exists():
        return THREE
    return 1 if any((folder / name).exists() for name in SINGLE_DATA) else None


def nats_servers(folder: Path, count: Count, *, port: int | None = None) -> list[ChildProcess]:
    """That many nats-servers with their data in this folder, on the ports that they had; not yet started.

    `port` is wished for by a single one. Raises `Misuse` (no binary), `WorldFailure` (no port, unreadable note).
    """
    if count == 1:
        return [nats_server(folder, _kept(port, set()))]
    return _three(folder, nats_server, peers_may_move=True)


def etcd_servers(folder: Path, count: Count, *, port: int | None = None) -> list[ChildProcess]:
    """The same of etcd."""
    if count == 1:
        return [etcd_server(folder, _kept(port, set()))]
    return _three(folder, etcd_server, peers_may_move=False)


def server_configs(folder: Path) -> list[Path]:
    """The configuration files of the nats-servers with their data in this folder."""
    if count_with_data(folder) != THREE:
        return [folder / NATS_CONFIG]
    return [folder / str(number) / NATS_CONFIG for number in range(1, THREE + 1)]


def _three(folder: Path, make: Callable[..., ChildProcess], *, peers_may_move: bool) -> list[ChildProcess]:
    note = _noted(folder, peers_may_move=peers_may_move)
    peer_ports = tuple(note.peer_ports)
    return [
        make(folder / str(number), port, membership=Membership(note.cluster, number, peer_ports))
        for number, port in enumerate(note.client_ports, start=1)
    ]


def _noted(folder: Path, *, peers_may_move: bool) -> Note:
    """The set's note, brought up to date with the ports that are free now, and on disk when this returns."""
    earlier = _read(folder / NOTE)
    taken: set[int] = set()
    if earlier is None:
        name, client, peers = f"holdfast-{secrets.token_hex(4)}", [None] * THREE, [None] * THREE
        note = Note(name, _all_kept(client, taken), _all_kept(peers, taken))
    else:
        taken |= {*earlier.peer_ports}
        peer_ports = earlier.peer_ports
        if peers_may_move:
            taken -= {*peer_ports}
            peer_ports = _all_kept(peer_ports, taken)
        note = Note(earlier.cluster, _all_kept(earlier.client_ports, taken), peer_ports)
    if note != earlier:
        _write(folder / NOTE, note)
    return note


def _all_kept(ports: Iterable[int | None], taken: set[int]) -> list[int]:
    return [_kept(port, taken) for port in ports]


def _kept(port: int | None, taken: set[int]) -> int:
    """This port if it can be had, else a free one; noted in `taken`."""
    good = port is not None and port in PORTS and port not in taken and can_have(port)
    found = port if good and port is not None else free_port(besides=taken)
    taken.add(found)
    return found


def _read(path: Path) -> Note | None:
    try:
        note = msgspec.json.decode(path.read_bytes(), type=Note)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise WorldFailure(f"{path} can't be read: {error}; restore it, the servers beside it need it") from error
    if not len(note.client_ports) == len(note.peer_ports) == THREE:
        raise WorldFailure(f"{path} must name {THREE} client ports and {THREE} peer ports; restore it")
    return note


def _write(path: Path, note: Note) -> None:
    """Replace it as a whole. Servers that find each other by it start only once it can't be lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".json.new")
    with draft.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(note), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
