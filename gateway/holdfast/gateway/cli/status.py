"""`holdfast status`: how the cluster stands, by its log and its leases."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.gateway.cli.options import DataDirOption, EtcdOption, JsonOption, NatsOption
from holdfast.gateway.cli.running import EXIT_FAILED, EXIT_MISUSE, execute

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import TypeVar

    from holdfast.core.status import ClusterReport
    from holdfast.gateway.cli.finding import Found
    from holdfast.gateway.cli.gateway_health import GatewayTold
    from holdfast.gateway.cli.reading import LeasePicture, LogPicture
    from holdfast.gateway.cli.servers import ServerView
    from holdfast.gateway.data_dir import Service
    from holdfast.gateway.log_room import LogRoom

    _T = TypeVar("_T")

EPILOG = """
Examples

`holdfast status` shows the cluster that `holdfast up` runs in this directory.

`holdfast status --json | jq .applications` for machines.

`holdfast status --nats nats://a:4222 --etcd http://a:2379` shows a cluster anywhere.
"""


def status(
    as_json: JsonOption = False,
    data_dir: DataDirOption = Path(".holdfast"),
    nats: NatsOption = None,
    etcd: EtcdOption = None,
) -> None:
    """Show servers, leader, nodes, gateways, replicas and applications.

    Read from the log, the leases, and each gateway's /health. When one of them is away, the rest is shown, and what is
    missing said, and since when by the gateways. Exit code 1 when the log is full, 2 when neither of them answers.
    """
    execute(_status(data_dir, nats, etcd, as_json))


async def _status(data_dir: Path, nats: list[str] | None, etcd: list[str] | None, as_json: bool) -> None:
    from holdfast.gateway.cli.finding import find_cluster
    from holdfast.gateway.cli.tables import print_json

    answer = await collect(find_cluster(data_dir, nats, etcd))
    if as_json:
        print_json(answer)
    else:
        _show(answer)
    if not any(service["reachable"] for service in answer["services"].values()):
        raise SystemExit(EXIT_MISUSE)
    if answer["log"] is not None and _room(answer["log"]).result == "fail":
        raise SystemExit(EXIT_FAILED)


async def collect(found: Found) -> dict[str, Any]:
    """What `--json` prints. Raises `LogUnavailable` when neither log nor leases, nor a gateway that knows, answers."""
    from holdfast.core.errors import HoldfastError
    from holdfast.gateway.cli.gateway_health import ask_gateways, down_since
    from holdfast.gateway.cli.reading import read_leases, read_log

    log, leases, servers = await asyncio.gather(
        _or_error(read_log(found.settings)), _or_error(read_leases(found.settings)), _look_at_servers(found)
    )
    told = await ask_gateways(_gateways(found, log, leases))
    since = down_since(told)
    if isinstance(log, HoldfastError) and isinstance(leases, HoldfastError) and not since:
        raise type(log)(f"{log}; and the leases: {leases}")
    return _answer(found, log, leases, servers, told)


async def _look_at_servers(found: Found) -> dict[str, list[ServerView]]:
    """Of several servers of a kind, each by itself. A single one stands and falls with what is read from it."""
    from holdfast.gateway.cli.servers import lease_servers, log_servers

    log, leases, cluster = found.settings.log_settings(), found.settings.lease_settings(), found.cluster
    looks = {}
    if len(log.urls) > 1:
        looks["nats"] = log_servers(log, cluster.nats if cluster else None)
    if len(leases.endpoints) > 1:
        looks["etcd"] = lease_servers(leases, cluster.etcd if cluster else None)
    return dict(zip(looks, await asyncio.gather(*looks.values()), strict=True))


def _gateways(found: Found, log: LogPicture | Exception, leases: LeasePicture | Exception) -> dict[str, str]:
    """URLs of gateways that may live, by their names: by the log and the leases, else by what `up` noted."""
    from holdfast.core.cluster import MemberStatus
    from holdfast.gateway.cli.reading import lease_view

    if not isinstance(log, Exception):
        held = None if isinstance(leases, Exception) else lease_view(leases).incarnations
        return {
            gateway.id: gateway.url
            for gateway in log.state.gateways.values()
            if gateway.status in (MemberStatus.ALIVE, MemberStatus.STOPPING)
            and (held is None or gateway.incarnation in held)
        }
    return {gateway.id: gateway.url for gateway in found.cluster.gateways if gateway.url} if found.cluster else {}


async def _or_error(reading: Coroutine[Any, Any, _T]) -> _T | Exception:
    """What was read, or what is wrong with the server."""
    from holdfast.core.errors import HoldfastError

    try:
        return await reading
    except HoldfastError as error:
        return error


def _answer(
    found: Found,
    log: LogPicture | Exception,
    leases: LeasePicture | Exception,
    servers: dict[str, list[ServerView]],
    told: dict[str, GatewayTold | None],
) -> dict[str, Any]:
    import msgspec

    from holdfast.core.cluster import ClusterState
    from holdfast.core.status import report
    from holdfast.gateway.cli.gateway_health import as_told, down_since
    from holdfast.gateway.cli.reading import lease_view

    settings = found.settings
    nats, etcd = (found.cluster.nats, found.cluster.etcd) if found.cluster else (None, None)
    view = None if isinstance(leases, Exception) else lease_view(leases)
    state = ClusterState() if isinstance(log, Exception) else log.state
    seen: ClusterReport = report(state, view, datetime.now(UTC))
    seen = msgspec.structs.replace(seen, gateways=[as_told(gateway, told) for gateway in seen.gateways])
    since = down_since(told)
    controller = msgspec.to_builtins(seen.controller)
    if isinstance(log, Exception):
        leader = view.leader if view else None
        controller = {
            "node": leader.node if leader else None,
            "epoch": leader.epoch if leader else None,
            "pid": leader.pid if leader else None,
            "status": "LEADING" if leader else "ELECTING",
            "message": "known from the leases alone" if view else "neither log nor leases can be read",
        }
    return {
        "cluster": settings.cluster,
        "degraded": _degraded(log, leases, servers, since),
        "services": {
            "nats": _service(nats, settings.nats.urls, log, servers.get("nats"), since.get("log")),
            "etcd": _service(etcd, settings.etcd.endpoints, leases, servers.get("etcd"), since.get("leases")),
        },
        "log": None if isinstance(log, Exception) else msgspec.to_builtins(log.status),
        **msgspec.to_builtins(seen),
        "controller": controller,
    }


def _degraded(
    log: LogPicture | Exception,
    leases: LeasePicture | Exception,
    servers: dict[str, list[ServerView]],
    since: dict[str, datetime],
) -> list[str]:
    """What is not as it should be, in sentences."""
    from holdfast.gateway.log_room import ADVICE

    said = [
        f"{name} unreachable{_for_how_long(since.get(name))}: {answer}"
        for name, answer in (("log", log), ("leases", leases))
        if isinstance(answer, Exception)
    ]
    said += [f"{one.name} {one.problem}" for views in servers.values() for one in views if one.problem]
    if not isinstance(log, Exception):
        room = _room({"bytes": log.status.bytes, "bytes_max": log.status.bytes_max})
        if room.result != "ok":
            said.append(f"{room.found}: {ADVICE}")
    return said


def _for_how_long(since: datetime | None) -> str:
    """As gateways tell it."""
    if since is None:
        return ""
    return f" since {since.astimezone():%H:%M:%S} ({(datetime.now(UTC) - since).total_seconds():.0f} s)"


def _room(log: dict[str, Any]) -> LogRoom:
    from holdfast.gateway.log_room import log_room

    return log_room(log["bytes"], log["bytes_max"])


def _service(
    noted: Service | None,
    urls: tuple[str, ...],
    answer: LogPicture | LeasePicture | Exception,
    servers: list[ServerView] | None,
    down_since: datetime | None,
) -> dict[str, Any]:
    import msgspec

    from holdfast.gateway.cli.reading import LogPicture
    from holdfast.gateway.cli.servers import ServerView, named

    version = None
    if not isinstance(answer, Exception):
        version = answer.status.server_version if isinstance(answer, LogPicture) else answer.status.version
    url = urls[0] if isinstance(answer, Exception) else answer.status.url
    reached = not isinstance(answer, Exception)
    if servers is None:
        name, pid = named(noted, urls[0])
        servers = [ServerView(name, urls[0], pid, reached)]
    return {
        "pid": named(noted, url)[1],
        "url": url,
        "urls": list(urls),
        "embedded": bool(noted and noted.embedded),
        "reachable": reached,
        "down_since": down_since.isoformat() if down_since is not None and not reached else None,
        "version": version,
        "servers": msgspec.to_builtins(servers),
    }


# --- for people -----------------------------------------------------------------------------------------


def _show(answer: dict[str, Any]) -> None:
    from rich.markup import escape

    from holdfast.gateway.cli.tables import console, table

    out = console()
    for problem in answer["degraded"]:
        out.print(f"[red]degraded:[/] {escape(problem)}")
    heads = ("SERVER", "STATE", "ROLE", "URL", "PID", "VERSION")
    out.print(table(f"Cluster {answer['cluster']}", heads, _server_rows(answer)))
    controller = answer["controller"]
    columns = ("node", "epoch", "status", "pid", "message")
    out.print(table("\nController", [name.upper() for name in columns], [[controller[name] for name in columns]]))
    sections = {
        "nodes": ("id", "status", "pid", "host", "replicas", "slots", "message"),
        "gateways": ("id", "status", "pid", "url", "message"),
        "replicas": ("id", "state", "node", "pid", "address", "message"),
    }
    for section, names in sections.items():
        rows = [[item[name] for name in names] for item in answer[section]]
        out.print(table(f"\n{section.capitalize()}", [name.upper() for name in names], rows))
    out.print(
        table("\nApplications", ("APPLICATION", "MODEL", "STATUS", "REPLICAS", "ENGINE", "MESSAGE"), _rows(answer))
    )


def _server_rows(answer: dict[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = []
    for kind, service in answer["services"].items():
        for one in service["servers"]:
            name = kind if one["name"] == one["url"] else one["name"]
            state = "reachable" if one["reachable"] else "unreachable"
            rows.append([name, state, one["role"], one["url"], one["pid"], service["version"]])
    return rows


def _rows(answer: dict[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = []
    for name, application in answer["applications"].items():
        rows.append([name, "", application["status"], "", "", application["message"]])
        for model, deployment in application["deployments"].items():
            count = f"{deployment['replicas_running']}/{deployment['replicas_wanted']}"
            rows.append(["", model, deployment["status"], count, deployment["engine"], deployment["message"]])
    return rows
