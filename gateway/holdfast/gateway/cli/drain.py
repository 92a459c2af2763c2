"""`holdfast drain` and `holdfast undrain`: take a node, a replica or a gateway out of use in order, and back."""

from __future__ import annotations

import asyncio
import contextlib
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from holdfast.gateway.cli.options import DataDirOption, EtcdOption, JsonOption, NatsOption
from holdfast.gateway.cli.running import execute

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from holdfast.actors.follower import Follower
    from holdfast.actors.operator import Operator
    from holdfast.core.cluster import ClusterState
    from holdfast.gateway.drain_progress import Progress, Target

OPERATOR = "drain"
WAIT_S = 600.0

DRAIN_EPILOG = """
Examples

`holdfast drain node-2 --wait` empties a node: its replicas are replaced elsewhere first.

`holdfast drain gateway-1 --mode migrate` lets shipped clients go on at other gateways now; others' streams break.

`holdfast drain default.tiny.3 --deadline 30` replaces a replica, within 30 s whatever happens.

`holdfast drain node/a` says which is meant where a node and a gateway are both called a.
"""

UNDRAIN_EPILOG = "Example\n\n`holdfast undrain node-2`"

NameArgument = Annotated[str, typer.Argument(metavar="NODE|REPLICA|GATEWAY", help="As `holdfast status` shows it.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Return when it is done, and tell how far it is until then.")]
TimeoutOption = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.1, help="With --wait: give up waiting after this long.")
]


class Mode(StrEnum):
    """What becomes of streams that are open."""

    FINISH = "finish"
    MIGRATE = "migrate"


class _How(NamedTuple):
    """What both commands are told besides the name."""

    wait_s: float | None
    as_json: bool
    data_dir: Path
    nats: list[str] | None
    etcd: list[str] | None


def drain(
    name: NameArgument,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="finish: streams may end where they are, until their time is over. migrate: they go elsewhere at "
            "once; from a gateway only the shipped client's can. [default: as configured]",
            show_default=False,
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0,
            max=86_400,
            help="All is over by then, replaced or not. [default: replicas wait until they are replaced, gateways "
            "until what is open has ended]",
            show_default=False,
        ),
    ] = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = WAIT_S,
    as_json: JsonOption = False,
    data_dir: DataDirOption = Path(".holdfast"),
    nats: NatsOption = None,
    etcd: EtcdOption = None,
) -> None:
    """Take a node, a replica or a gateway out of use, without breaking a stream.

    A node's replicas are replaced on other nodes before they stop, and it gets no others until it is undrained,
    whatever becomes of its process. A replica is replaced and is gone then. A gateway takes nothing new at once, lets
    what is open end, and stays up. Exit code 1 when waiting took too long, 2 for a name that is nobody's, or several
    members'.
    """
    execute(_drain(name, mode, deadline, _How(timeout if wait else None, as_json, data_dir, nats, etcd)))


def undrain(
    name: NameArgument,
    wait: WaitOption = False,
    timeout: TimeoutOption = WAIT_S,
    as_json: JsonOption = False,
    data_dir: DataDirOption = Path(".holdfast"),
    nats: NatsOption = None,
    etcd: EtcdOption = None,
) -> None:
    """Take back into use what was drained: a node gets replicas again, a gateway takes requests.

    A replica that is not replaced yet stays; one that was told to stop does so all the same. Exit codes as of `drain`.
    """
    execute(_undrain(name, _How(timeout if wait else None, as_json, data_dir, nats, etcd)))


async def _drain(name: str, mode: Mode | None, deadline_s: float | None, how: _How) -> None:
    from holdfast.gateway.cli.tables import console
    from holdfast.gateway.drain_progress import drain_progress, find_target, only_gateway

    async with _operator(how) as (operator, follower):
        target = find_target(follower.state, name)
        if only_gateway(follower.state, target):
            console(to_error=True).print(f"no other gateway takes requests while {target.name} is drained")
        asked = await operator.drain(target.kind, target.name, mode.value if mode else None, deadline_s)
        await _follow_up("drained", target, asked, how, follower, lambda state: drain_progress(state, target))


async def _undrain(name: str, how: _How) -> None:
    from holdfast.gateway.drain_progress import find_target, undrain_progress

    async with _operator(how) as (operator, follower):
        target = find_target(follower.state, name)
        asked = await operator.undrain(target.kind, target.name)
        await _follow_up("in use", target, asked, how, follower, lambda state: undrain_progress(state, target))


@contextlib.asynccontextmanager
async def _operator(how: _How) -> AsyncIterator[tuple[Operator, Follower]]:
    """An operator who has read the log. Raises `LogUnavailable`, `Misuse`."""
    from holdfast.actors.clock import SystemClock
    from holdfast.actors.follower import Follower
    from holdfast.actors.operator import Operator
    from holdfast.gateway.cli.finding import find_cluster
    from holdfast.gateway.cli.reading import existing_log
    from holdfast.gateway.processes import identify

    settings = find_cluster(how.data_dir, how.nats, how.etcd).settings
    async with existing_log(settings) as log:
        follower = Follower(log)
        following = asyncio.create_task(follower.run())
        try:
            await follower.catch_up()
            yield Operator(log, SystemClock(), identify(settings, "operator", OPERATOR), follower), follower
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def _follow_up(
    wanted: str,
    target: Target,
    asked: bool,
    how: _How,
    follower: Follower,
    look: Callable[[ClusterState], Progress],
) -> None:
    """Say what was asked for, wait if that is wanted, and say what came of it. Raises `WorldFailure` at the timeout."""
    from holdfast.core.errors import WorldFailure
    from holdfast.gateway.cli.tables import console, print_json

    await follower.catch_up()
    progress = look(follower.state)
    if not how.as_json:
        before = "asked for" if asked else "asked for already"
        print(f"{target.kind} {target.name}: {'' if progress.done else before + '; '}{progress.message}")
    if how.wait_s is not None and not progress.done:
        try:
            async with asyncio.timeout(how.wait_s):
                while not progress.done:
                    await follower.change()
                    before, progress = progress.message, look(follower.state)
                    if progress.message != before and not how.as_json:
                        console(to_error=True).print(f"{target.name}: {progress.message}")
        except TimeoutError:
            late = f"{target.kind} {target.name} is not {wanted} after {how.wait_s:g} s: {progress.message}"
            raise WorldFailure(late) from None
        if not how.as_json:
            print(f"{target.kind} {target.name} is {wanted}")
    if how.as_json:
        found = {"kind": target.kind, "name": target.name, "asked": asked, "done": progress.done}
        print_json({**found, "message": progress.message})
