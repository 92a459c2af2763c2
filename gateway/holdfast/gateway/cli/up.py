"""`holdfast up`: a whole cluster on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from holdfast.gateway.cli.options import (
    DataDirOption,
    EtcdOption,
    LeaseTtlOption,
    NatsOption,
    gateway_overrides,
    overrides,
)
from holdfast.gateway.cli.running import EXIT_INTERRUPTED, execute, stop_on_signals

if TYPE_CHECKING:
    from holdfast.gateway.cli.progress import ConsoleProgress
    from holdfast.gateway.local_cluster import LocalCluster, Plan
    from holdfast.gateway.settings import Settings

_COUNTS: dict[str | None, Literal[1, 3]] = {"1": 1, "3": 3}

EPILOG = """
Examples

`holdfast up` serves the tiny model shipped with Holdfast on http://127.0.0.1:8000.

`holdfast up --engine mock --replicas 4 --gateways 2` needs no model; gateways on 8000 and 8001.

`holdfast up --engine mock --engine-args '{"ttft_ms": 50, "itl_ms": 10}'` paces the mock.

`holdfast up --engine class --engine-args '{"import_path": "my_module:MyEngine"}'` serves an engine of your own.

`holdfast up --engine mock --deployment-args '{"canary_wait_s": 5}'` changes how replicas are looked after.

`holdfast up --servers 3 --nodes 2` survives the loss of any one process: three nats-servers, three etcds.

`holdfast up --model ~/models/my-llama --replicas 1` serves a Llama from a directory in Hugging Face layout.

`holdfast up --nats nats://a:4222,nats://b:4222 --etcd http://a:2379` uses servers that run already.
"""


def up(
    nodes: Annotated[int, typer.Option(min=1, max=100, help="Nodes to run.")] = 1,
    replicas: Annotated[
        int | None,
        typer.Option(min=0, max=10_000, help="Replicas of the model. [default: as before, or 2]", show_default=False),
    ] = None,
    gateways: Annotated[int, typer.Option(min=1, max=100, help="Gateways to run; gateway k is on port P + k.")] = 1,
    servers: Annotated[
        Literal["1", "3"] | None,
        typer.Option(
            help="nats-servers and etcds to run, of each; with 3 any one may die. [default: as before, or 1]",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        Literal["torch", "mock", "class"] | None,
        typer.Option(
            help="What computes the tokens; class: one of your own. [default: as before, or torch]", show_default=False
        ),
    ] = None,
    engine_args: Annotated[
        str | None, typer.Option(metavar="JSON", help="The engine's own settings, a JSON object.", show_default=False)
    ] = None,
    deployment_args: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Settings of the deployment (docs/configuration.md), a JSON object.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Model directory. [default: as before, or the tiny model]", show_default=False
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(metavar="H", help="Address that the gateways listen on. [default: 127.0.0.1]", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="P", min=1, max=65_535, help="Port of the first gateway. [default: 8000]", show_default=False
        ),
    ] = None,
    data_dir: DataDirOption = Path(".holdfast"),
    nats: NatsOption = None,
    etcd: EtcdOption = None,
    lease_ttl_s: LeaseTtlOption = None,
    start_timeout_s: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="Give up when it is not ready by then.")
    ] = 120.0,
) -> None:
    """Run a cluster on this machine: log and lease servers, nodes, replicas and gateways, until Ctrl-C.

    Everything that happens is kept in the data directory's log, and the next `holdfast up` continues from there;
    options that you don't give stay as they were. Servers that die are started again.
    """
    from holdfast.gateway.goal import Wish
    from holdfast.gateway.local_cluster import Plan

    wish = Wish(replicas, engine, engine_args, deployment_args, model)
    more = overrides(nats, etcd, lease_ttl_s) | gateway_overrides(host, port)

    async def run() -> None:
        from holdfast.gateway.settings import load_settings

        settings = load_settings(**more)
        listen = settings.gateway
        plan = Plan(nodes, gateways, listen.host, listen.port, wish, start_timeout_s, _COUNTS.get(servers))
        await _run(plan, settings, data_dir)

    execute(run())


async def _run(plan: Plan, settings: Settings, data_dir: Path) -> None:
    """Check, start, serve and stop. Raises what is wrong."""
    from holdfast.gateway.cli.logs import log_to_file
    from holdfast.gateway.cli.progress import ConsoleProgress
    from holdfast.gateway.data_dir import DataDirectory
    from holdfast.gateway.goal import application_for
    from holdfast.gateway.local_cluster import LocalCluster
    from holdfast.store.log_files import bounded

    directory = DataDirectory(data_dir).lock()
    try:
        if plan.wish.names_engine or directory.read_cluster() is None:
            application_for(plan.wish, None)
        with log_to_file(directory.logs / "up.log"), ConsoleProgress() as progress:
            cluster = LocalCluster(plan, settings, directory, progress)
            cluster.check_ports()
            cluster.prepare()
            # Nodes see to their replicas' logs.
            async with bounded(directory.logs_but_replicas):
                await _serve(cluster, progress)
    finally:
        directory.unlock()


async def _serve(cluster: LocalCluster, progress: ConsoleProgress) -> None:
    stop = asyncio.Event()

    def at_once(_code: int) -> None:
        cluster.kill()
        os._exit(EXIT_INTERRUPTED)

    stop_on_signals(stop.set, at_once)
    try:
        async with asyncio.TaskGroup() as group:
            starting = group.create_task(_start(cluster, group, progress))
            await stop.wait()
            progress.waiting("everything to end")
            starting.cancel()
            cluster.stop_keeping()
    finally:
        await cluster.stop()
    progress.done("stopped; the next `holdfast up` continues from here")


async def _start(cluster: LocalCluster, group: asyncio.TaskGroup, progress: ConsoleProgress) -> None:
    from holdfast.gateway.bring_up import bring_up

    await cluster.start_servers(group)
    models = await bring_up(cluster, group, progress)
    cluster.settle()
    urls = [gateway.url for gateway in cluster.gateways]
    progress.ready(urls, models, needs_key=bool(cluster.settings.http.api_keys))
