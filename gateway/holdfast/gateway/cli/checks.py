"""What `holdfast doctor` looks at. Every check gives a row: what was found, and what to do where that is not right."""

from __future__ import annotations

import asyncio
import platform
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import msgspec

from holdfast.core.errors import HoldfastError, Misuse
from holdfast.gateway.cli.finding import ANSWER_TIMEOUT_S, Found, find_cluster
from holdfast.gateway.cli.servers import ServerView, lease_servers, log_servers
from holdfast.gateway.data_dir import LAYOUT_VERSION
from holdfast.gateway.goal import TORCH_PACKAGES
from holdfast.gateway.log_room import ADVICE, log_room
from holdfast.gateway.processes import open_leases
from holdfast.gateway.version import VERSION
from holdfast.store.embedded import find_binary
from holdfast.store.embedded_cluster import server_configs
from holdfast.store.jetstream_api import ApiError, JetStreamApi
from holdfast.store.jetstream_stream import check_stream
from holdfast.store.nats_session import Session

Result = Literal["ok", "warn", "fail"]
OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"

DISK_WARN_BYTES = 4 << 30
DISK_FAIL_BYTES = 256 << 20
"""The log may grow to 1 GiB and the leases' store to 2 GiB by default."""

FILES_MIN = 4096
CLOCK_WARN_S = 1.0
DATE_HEADER_STEP_S = 1.0
"""An HTTP date has whole seconds."""

CLOCK_SAMPLE_S = 0.05


class Finding(msgspec.Struct, frozen=True):
    """One row."""

    check: str
    result: Result
    found: str
    advice: str = ""


async def examine(data_dir: Path, nats: Sequence[str] | None, etcd: Sequence[str] | None) -> list[Finding]:
    """All findings."""
    findings = [*_installation(), *_machine(data_dir)]
    try:
        found = find_cluster(data_dir, nats, etcd)
    except Misuse as error:
        findings.append(await _clock_alone())
        return [*findings, Finding("cluster", WARN, "none examined", str(error))]
    log, leases = await asyncio.gather(_log(found), _leases(found))
    return [*findings, *log, *leases]


# --- this machine ---------------------------------------------------------------------------------------


def _installation() -> Iterator[Finding]:
    yield Finding("holdfast", OK, VERSION)
    yield Finding("python", OK, f"{platform.python_version()} on {platform.system()} {platform.release()}")
    for name in ("nats-server", "etcd"):
        try:
            yield Finding(f"{name} binary", OK, str(find_binary(name)))
        except Misuse as error:
            yield Finding(f"{name} binary", WARN, "missing", str(error))
    missing = [package for package in TORCH_PACKAGES if find_spec(package) is None]
    if missing:
        advice = "pip install 'holdfast[torch]', unless you only use --engine mock"
        yield Finding("torch engine", WARN, f"lacks {', '.join(missing)}", advice)
    else:
        yield Finding("torch engine", OK, "installed")


def _machine(data_dir: Path) -> Iterator[Finding]:
    yield _disk(data_dir)
    layout = data_dir / "layout"
    if layout.is_file():
        version = layout.read_text(errors="replace").strip()[:20]
        advice = "" if version == LAYOUT_VERSION else f"use the Holdfast that made it; this one uses {LAYOUT_VERSION}"
        yield Finding("data layout", FAIL if advice else OK, version, advice)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < FILES_MIN:
        yield Finding("open files", WARN, str(files), f"every stream takes one: ulimit -n {FILES_MIN} or more")
    else:
        yield Finding("open files", OK, str(files))


def _disk(data_dir: Path) -> Finding:
    place = data_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{free / (1 << 30):.1f} GiB free at {place}"
    if free < DISK_FAIL_BYTES:
        return Finding("disk", FAIL, found, "free some space: the log refuses appends when the disk is full")
    if free < DISK_WARN_BYTES:
        return Finding("disk", WARN, found, "log and leases may grow to 3 GiB by default: free some space")
    return Finding("disk", OK, found)


async def _clock_alone() -> Finding:
    """Without a server to compare with: whether the wall clock runs as fast as the monotonic one."""
    wall_s, steady_s = time.time(), time.monotonic()
    await asyncio.sleep(CLOCK_SAMPLE_S)
    drift_s = abs((time.time() - wall_s) - (time.monotonic() - steady_s))
    return _clock("clock", drift_s, 0.0, "runs evenly; no server to compare with")


def _clock(check: str, offset_s: float, tolerance_s: float, found: str) -> Finding:
    if abs(offset_s) > CLOCK_WARN_S + tolerance_s:
        return Finding(check, WARN, found, "run an NTP client on all machines: times in the log mislead people")
    return Finding(check, OK, found)


# --- the log's servers ----------------------------------------------------------------------------------


async def _log(found: Found) -> list[Finding]:
    settings = found.settings.log_settings()
    session = Session(settings)
    try:
        await session.open()
        asked_at = datetime.now().astimezone()
        connection = await session.connection(ANSWER_TIMEOUT_S)
        reached = Finding("log servers", OK, f"{connection.url}, nats-server {connection.server_version}")
        if len(settings.urls) > 1:
            reached = _together(reached, await log_servers(settings, found.cluster.nats if found.cluster else None))
        try:
            info = await JetStreamApi(session, settings).stream_info(ANSWER_TIMEOUT_S)
        except ApiError as error:
            return [reached, Finding("stream", FAIL, str(error), "it is created when the first node starts")]
        return [reached, _stream(info, found), _room(info), _server_clock(info, asked_at), _fsync(found)]
    except HoldfastError as error:
        return [Finding("log servers", FAIL, str(error), "start them, or mend --nats or HOLDFAST_NATS__...")]
    finally:
        await session.close()


def _together(reached: Finding, servers: list[ServerView]) -> Finding:
    """The finding about one server that answers, with what is to be said about the others."""
    problems = [f"{one.name} {one.problem}" for one in servers if one.problem]
    if not problems:
        return Finding(reached.check, OK, f"{reached.found}; all {len(servers)} are well")
    advice = "mend it soon: what is left serves only while a majority is well"
    return Finding(reached.check, WARN, f"{reached.found}; {'; '.join(problems)}", advice)


def _stream(info: dict[str, Any], found: Found) -> Finding:
    settings, config, state = found.settings.log_settings(), info["config"], info["state"]
    try:
        check_stream(config, settings)
    except HoldfastError as error:
        return Finding("stream", FAIL, settings.stream, str(error))
    summary = (
        f"{settings.stream}: {state['last_seq']} events, {state['bytes']} of {config['max_bytes']} bytes, "
        f"{config['num_replicas']} replica(s), {config['storage']} storage, discard {config['discard']}"
    )
    if config["num_replicas"] == 1 and not (found.cluster and found.cluster.nats.embedded):
        advice = "one copy survives no lost disk: 3 servers and HOLDFAST_NATS__REPLICAS=3"
        return Finding("stream", WARN, summary, advice)
    return Finding("stream", OK, summary)


def _room(info: dict[str, Any]) -> Finding:
    room = log_room(info["state"]["bytes"], info["config"]["max_bytes"])
    return Finding("room in log", room.result, room.found, "" if room.result == OK else ADVICE)


def _server_clock(info: dict[str, Any], asked_at: datetime) -> Finding:
    """JetStream stamps its answers."""
    now = datetime.now().astimezone()
    try:
        server = datetime.fromisoformat(str(info["ts"]))
    except (KeyError, ValueError):
        return Finding("clock of log", OK, "the server doesn't tell its time")
    offset_s = (server - (asked_at + (now - asked_at) / 2)).total_seconds()
    return _clock("clock of log", offset_s, 0.0, f"server is {offset_s:+.3f} s from here")


def _fsync(found: Found) -> Finding:
    """What the configuration that we wrote for our own server says; another server does not tell."""
    if found.cluster is None or not found.cluster.nats.embedded or found.directory is None:
        advice = "set `sync_interval: always` in the servers' jetstream block, or run 3 replicas in 3 power domains"
        return Finding("fsync of log", WARN, "a server of yours doesn't tell", advice)
    for config in server_configs(found.directory.nats):
        try:
            always = "sync_interval: always" in config.read_text()
        except OSError as error:
            return Finding("fsync of log", WARN, f"{config}: {error.strerror}", "start the cluster again")
        if not always:
            return Finding("fsync of log", FAIL, f"{config} lacks `sync_interval: always`", "start the cluster again")
    return Finding("fsync of log", OK, "sync_interval: always")


# --- the lease servers ----------------------------------------------------------------------------------


async def _leases(found: Found) -> list[Finding]:
    try:
        async with open_leases(found.settings) as leases:
            status = await leases.status()
    except HoldfastError as error:
        return [Finding("lease servers", FAIL, str(error), "start them, or mend --etcd or HOLDFAST_ETCD__...")]
    reached = Finding("lease servers", OK, f"{status.url}, etcd {status.version}, revision {status.revision}")
    settings = found.settings.lease_settings()
    if len(settings.endpoints) > 1:
        reached = _together(reached, await lease_servers(settings, found.cluster.etcd if found.cluster else None))
    return [reached, await _lease_clock(found, status.url)]


async def _lease_clock(found: Found, url: str) -> Finding:
    """etcd dates its HTTP answers."""
    settings = found.settings.lease_settings()
    try:
        verify = settings.tls_context() if settings.uses_tls else True
        async with httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S, trust_env=False, verify=verify) as client:
            answer = await client.get(f"{url}/version")
        # The date was cut to whole seconds: on average it is half of one behind.
        server = parsedate_to_datetime(answer.headers["date"]).timestamp() + DATE_HEADER_STEP_S / 2
    except (httpx.HTTPError, KeyError, ValueError, OSError):
        return Finding("clock of leases", OK, "the server doesn't tell its time")
    offset_s = server - time.time()
    found_text = f"server is {offset_s:+.1f} s from here, to within {DATE_HEADER_STEP_S / 2:g} s"
    return _clock("clock of leases", offset_s, DATE_HEADER_STEP_S / 2, found_text)
