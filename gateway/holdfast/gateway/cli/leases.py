"""`holdfast leases`: who is alive by the lease servers, until when, and who leads."""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from holdfast.gateway.cli.options import DataDirOption, EtcdOption, JsonOption, NatsOption
from holdfast.gateway.cli.running import execute

if TYPE_CHECKING:
    from holdfast.core.ports import KeyChange
    from holdfast.gateway.cli.reading import LeasePicture

LS_EPILOG = """
Examples

`holdfast leases ls` shows every lease, and who leads with which epoch.

`holdfast leases ls --json | jq .leader`
"""
WATCH_EPILOG = """
Examples

`holdfast leases watch` shows leases as they come and go, until Ctrl-C.
"""

END_EPILOG = """
Examples

`holdfast leases end node node-7 --etcd http://a:2379` after the process of node-7 was killed on this machine.

`ExecStopPost=-/usr/local/bin/holdfast leases end node node-7` in the systemd unit that runs `holdfast node node-7`.
"""

app = typer.Typer(no_args_is_help=True, help="Who is alive, until when, and who leads.")


@app.command(name="ls", epilog=LS_EPILOG)
def list_leases(
    as_json: JsonOption = False,
    data_dir: DataDirOption = Path(".holdfast"),
    nats: NatsOption = None,
    etcd: EtcdOption = None,
) -> None:
    """List every lease: holder, role, time to live, time left, revision, keys; and the leader with its epoch."""
    execute(_list(as_json, (data_dir, nats, etcd)))


@app.command()
def show(
    lease: Annotated[str, typer.Argument(metavar="ID", help="The lease's id, as `leases ls` prints it.")],
    as_json: JsonOption = False,
    data_dir: DataDirOption = Path(".holdfast"),
    nats: NatsOption = None,
    etcd: EtcdOption = None,
) -> None:
    """Show one lease with its keys and what stands at them."""
    execute(_show(lease, as_json, (data_dir, nats, etcd)))


@app.command(epilog=WATCH_EPILOG)
def watch(
    as_json: JsonOption = False,
    data_dir: DataDirOption = Path(".holdfast"),
    nats: NatsOption = None,
    etcd: EtcdOption = None,
) -> None:
    """Show the leases' keys, then every change to them, until Ctrl-C. Renewals change nothing and don't show."""
    execute(_watch(as_json, (data_dir, nats, etcd)))


@app.command(epilog=END_EPILOG)
def end(
    role: Annotated[Literal["node", "gateway"], typer.Argument(metavar="node|gateway", help="What it is.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    data_dir: DataDirOption = Path(".holdfast"),
    nats: NatsOption = None,
    etcd: EtcdOption = None,
) -> None:
    """End the lease of a node or gateway whose process on this machine is dead, instead of waiting for its end.

    The next leader is elected, and replacements are placed, at once. Run it where the process ran, after its end: a
    lease whose process exists, or that is held from another host or container, is left alone. `holdfast up` does this
    by itself.
    """
    execute(_end(role, name, (data_dir, nats, etcd)))


Where = tuple[Path, list[str] | None, list[str] | None]


async def _picture(where: Where) -> LeasePicture:
    from holdfast.gateway.cli.finding import find_cluster
    from holdfast.gateway.cli.reading import read_leases

    return await read_leases(find_cluster(*where).settings)


async def _end(role: str, name: str, where: Where) -> None:
    from holdfast.gateway.cli.finding import find_cluster
    from holdfast.gateway.ending import end_leases_of_dead

    ended = await end_leases_of_dead(find_cluster(*where).settings, role, name)
    for holder in ended:
        print(f"ended the lease of {role} {name}, process {holder.pid}")
    if not ended:
        print(f"no lease of a dead process of {role} {name} on this machine")


async def _list(as_json: bool, where: Where) -> None:
    from holdfast.gateway.cli.tables import console, print_json, table

    picture = await _picture(where)
    leader, leases = _leader(picture), _leases(picture)
    if as_json:
        print_json({"leader": leader, "leases": leases})
        return
    out = console()
    out.print(f"leader: {leader['node']}, epoch {leader['epoch']}" if leader else "leader: none", highlight=False)
    columns = ("ID", "HOLDER", "ROLE", "TTL", "LEFT", "REVISION", "KEYS")
    rows = [
        (
            lease["id"],
            lease["holder"],
            lease["role"],
            f"{lease['ttl_s']:g} s",
            f"{lease['remaining_s']:g} s",
            lease["revision"],
            "\n".join(lease["keys"]),
        )
        for lease in leases
    ]
    out.print(table("", columns, rows))


async def _show(wanted: str, as_json: bool, where: Where) -> None:
    from rich.markup import escape

    from holdfast.core.errors import Misuse
    from holdfast.gateway.cli.reading import holder_of
    from holdfast.gateway.cli.tables import console, print_json

    picture = await _picture(where)
    found = next((lease for lease in _leases(picture) if lease["id"] == wanted.lower()), None)
    if found is None:
        raise Misuse(f"no lease {wanted}: it has ended or never was; `holdfast leases ls` lists those that live")
    values = {item.key: holder_of(item) for item in picture.keys if f"{item.lease:x}" == found["id"]}
    if as_json:
        print_json({**found, "values": values})
        return
    out = console()
    for name, value in found.items():
        out.print(f"{name:<12} {escape(', '.join(value) if isinstance(value, list) else str(value))}")
    for key, value in values.items():
        out.print(f"\n[bold]{escape(key)}[/]")
        for name, item in value.items():
            out.print(f"  {name:<12} {escape(str(item))}")


async def _watch(as_json: bool, where: Where) -> None:
    from holdfast.core.ports import KeyChange
    from holdfast.gateway.cli.finding import find_cluster
    from holdfast.gateway.processes import open_leases

    async with open_leases(find_cluster(*where).settings) as leases:
        listing = await leases.list("")
        for item in listing.items:
            _print_change(KeyChange(item.mod_revision, item.key, item.value), as_json)
        async with contextlib.aclosing(leases.watch("", after=listing.revision)) as batches:
            async for batch in batches:
                for change in batch:
                    _print_change(change, as_json)


def _print_change(change: KeyChange, as_json: bool) -> None:
    from holdfast.gateway.cli.reading import parse_holder
    from holdfast.gateway.cli.tables import print_json

    now = datetime.now().astimezone()
    value = None if change.value is None else parse_holder(change.value)
    what = "gone" if value is None else "held"
    if as_json:
        line = {"time": now, "revision": change.revision, "key": change.key, "change": what, "value": value}
        print_json(line, indent=0)
        return
    who = f" by {value.get('holder', '?')} (process {value.get('pid', '?')})" if value is not None else ""
    print(f"{now:%H:%M:%S} revision {change.revision:>6}  {change.key} {what}{who}", flush=True)


def _leader(picture: LeasePicture) -> dict[str, Any] | None:
    from holdfast.gateway.cli.reading import lease_view

    leader = lease_view(picture).leader
    return {"node": leader.node, "epoch": leader.epoch, "pid": leader.pid} if leader else None


def _leases(picture: LeasePicture) -> list[dict[str, Any]]:
    """Every lease, with what the values of its keys tell about its holder. `revision` is its first key's."""
    from holdfast.gateway.cli.reading import holder_of

    found = []
    for lease in picture.leases:
        keys = sorted((item for item in picture.keys if item.lease == lease.id), key=lambda item: item.create_revision)
        holder = next((value for item in keys if (value := holder_of(item))), {})
        found.append(
            {
                "id": f"{lease.id:x}",
                "holder": holder.get("holder"),
                "role": holder.get("role"),
                "ttl_s": lease.ttl_s,
                "remaining_s": lease.remaining_s,
                "revision": keys[0].create_revision if keys else None,
                "keys": list(lease.keys),
            }
        )
    return sorted(found, key=lambda lease: (str(lease["role"]), str(lease["holder"])))
