"""`holdfast node` and `holdfast gateway`: one process of a cluster, in the foreground."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from holdfast.gateway.cli.logs import log_to_standard_error
from holdfast.gateway.cli.options import EtcdOption, LeaseTtlOption, NatsOption, gateway_overrides, overrides
from holdfast.gateway.cli.running import execute, guarded, stop_on_signals

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Its lasting name: lower case, digits, dashes.")]


def node(
    name: NameArgument,
    logs: Annotated[Path, typer.Option(metavar="DIR", help="Where its replicas' logs go.")] = Path("logs"),
    nats: NatsOption = None,
    etcd: EtcdOption = None,
    lease_ttl_s: LeaseTtlOption = None,
) -> None:
    """Run a node: it takes replicas, starts and supervises them, and stands by to lead.

    `holdfast up` starts its nodes with this. On a fleet, run one per machine under your service manager; all
    settings are in the environment (HOLDFAST_...). SIGTERM ends it once other nodes run what it ran, a second signal at
    once.
    """
    from holdfast.gateway.processes import run_node
    from holdfast.gateway.settings import load_settings

    settings = guarded(lambda: load_settings(**overrides(nats, etcd, lease_ttl_s)))
    execute(_until_told(lambda stop: run_node(settings, name, logs, stop)))


def gateway(
    name: NameArgument,
    host: Annotated[str | None, typer.Option(metavar="H", help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(metavar="P", help="Port to listen on.", show_default=False)] = None,
    nats: NatsOption = None,
    etcd: EtcdOption = None,
    lease_ttl_s: LeaseTtlOption = None,
) -> None:
    """Run a gateway: the OpenAI API over HTTP, in front of all replicas of the cluster.

    `holdfast up` starts its gateways with this. Any number may run anywhere; all settings are in the environment
    (HOLDFAST_...). SIGTERM lets what is open end, for HOLDFAST_GATEWAY__DRAIN_TIMEOUT_S at most, and ends it,
    SIGUSR2 for 2 s at most, a second SIGTERM at once.
    """
    from holdfast.gateway.processes import HURRY, run_gateway
    from holdfast.gateway.settings import load_settings

    more = overrides(nats, etcd, lease_ttl_s) | gateway_overrides(host, port)
    settings = guarded(lambda: load_settings(**more))
    hurry = asyncio.Event()
    work = _until_told(lambda stop: run_gateway(settings, name, stop, hurry), (HURRY, hurry.set))
    execute(work)


async def _until_told(
    run: Callable[[asyncio.Event], Awaitable[None]], hurry: tuple[int, Callable[[], None]] | None = None
) -> None:
    """Run a member until a signal says stop. `hurry` as of `stop_on_signals`."""
    log_to_standard_error()
    stop = asyncio.Event()
    stop_on_signals(stop.set, os._exit, hurry)
    await run(stop)
