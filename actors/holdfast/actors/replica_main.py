"""The replica process: `python -m holdfast.actors.replica_main`, started by a node.

Standard input brings the specification as one line of JSON and then stays open: its end means that the node
is gone. The original standard output goes to the node, a report a line; whatever libraries print goes to the log.
Whatever else comes in there are orders to stop.
Exit codes: 0 after an orderly end, 1 when the engine failed (the last report says how), 2 for bad arguments; a second
SIGTERM or SIGINT ends it at once, with 128 and the signal's number (143, 130).
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import random
import select
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TextIO, TypeVar

import msgspec
import uvloop

from holdfast.actors.engines.base import Engine
from holdfast.actors.heap import keep_for_good
from holdfast.actors.replica import Replica
from holdfast.actors.replica_metrics import ReplicaMetrics
from holdfast.actors.specification import (
    Draining,
    Failed,
    Ready,
    ReplicaSpecification,
    Report,
    StopOrder,
    decode_order,
    encode_report,
)
from holdfast.actors.stopping import Stopping
from holdfast.actors.system_port import SystemPort, system_pages
from holdfast.core.decoding import UNDECODABLE
from holdfast.core.errors import InvalidConfig, Misuse, in_words

if TYPE_CHECKING:
    from holdfast.actors.replica_traces import ReplicaTraces

LINE_BYTES_MAX = 1024 * 1024
CLOSE_TIMEOUT_S = 2.0

LOADING = "the engine is being loaded"
"""Why a replica can't serve yet."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Channel(Protocol):
    """The way to the node that started this process."""

    def report(self, report: Report) -> None:
        """Tell the node. A node that is gone hears nothing; the end of standard input is how that is noticed."""
        ...

    def note(self, report: Report) -> None:
        """Tell the node if it listens. One that stands still must not hold up the streams."""
        ...


class NodeChannel:
    """As `Channel`, over a pipe."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def report(self, report: Report) -> None:
        """As `Channel.report`."""
        with contextlib.suppress(BrokenPipeError):
            self._output.write(encode_report(report).decode() + "\n")
            self._output.flush()

    def note(self, report: Report) -> None:
        """As `Channel.note`: nothing is written into a pipe that is full."""
        if select.select([], [self._output], [], 0)[1]:
            self.report(report)


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    return reader


async def load_engine(specification: ReplicaSpecification) -> Engine:
    """The engine that the specification names. Raises `InvalidConfig`."""
    arguments = specification.engine.arguments
    if specification.engine.kind == "mock":
        from holdfast.actors.engines.mock import load_mock

        return load_mock(arguments, specification.model, random.Random(specification.replica))
    if specification.engine.kind == "class":
        from holdfast.actors.engines.user_class import load_class

        return await load_class(arguments)
    try:
        from holdfast.actors.engines.torch.engine import load_engine as load_torch
        from holdfast.actors.engines.torch.settings import read_settings
    except ImportError as error:
        raise InvalidConfig(f"the torch engine needs pip install 'holdfast[torch]' ({error})") from error
    return await load_torch(read_settings({"model_name": specification.model, **arguments}))


def open_traces(specification: ReplicaSpecification) -> ReplicaTraces | None:
    """Where spans go, if anywhere."""
    if not specification.otlp_endpoint:
        return None
    from holdfast.actors.replica_traces import exporting_traces

    return exporting_traces(specification)


async def serve(
    specification: ReplicaSpecification,
    channel: Channel,
    stdin: asyncio.StreamReader,
    load: Callable[[ReplicaSpecification], Awaitable[Engine]] = load_engine,
    end_now: Callable[[int], object] = os._exit,
    began: Callable[[Replica], None] = lambda _replica: None,
) -> None:
    """Load, report readiness, serve until told to stop or until the node is gone; `end_now` is for a second signal.

    `began` gets the replica that serves.
    """
    stopping = Stopping(StopOrder(specification.drain, specification.graceful_shutdown_timeout_s))
    stopping.on_signals(lambda: channel.report(Draining()), end_now)
    node_gone = asyncio.Event()
    metrics = ReplicaMetrics(specification.replica, specification.model)
    replica: Replica | None = None
    system = SystemPort(system_pages(metrics.ledger, lambda: replica.reasons if replica is not None else [LOADING]))
    await system.open(specification.host, specification.system_port_first)
    traces = open_traces(specification)
    async with asyncio.TaskGroup() as group:
        orders = group.create_task(_take_orders(stdin, stopping, node_gone))
        engine = await _unless_told(load(specification), stopping)
        if engine is not None:
            replica = Replica(specification, engine, channel.note, metrics, traces)
            began(replica)
            if await _unless_told(replica.warm_up(), stopping):
                server, address = await replica.listen()
                channel.report(Ready(address, engine.info, system.port))
                await _serve(replica, server, specification.orphan_grace_s, stopping, node_gone)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await engine.close()
        orders.cancel()
    system.close()
    if traces is not None:
        await traces.close()


async def _take_orders(stdin: asyncio.StreamReader, stopping: Stopping, node_gone: asyncio.Event) -> None:
    """Do as the node says, until it is gone."""
    while line := await stdin.readline():
        try:
            stopping.tell(decode_order.decode(line))
        except UNDECODABLE as error:
            logger.warning("the node says what can't be understood: %s", error)
    node_gone.set()


async def _unless_told(work: Awaitable[T], stopping: Stopping) -> T | None:
    """What comes of the work, or None where nobody wants it any more before it is done."""
    doing = asyncio.ensure_future(work)
    told = asyncio.create_task(stopping.told.wait())
    try:
        await asyncio.wait({doing, told}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        told.cancel()
        doing.cancel()


async def _serve(
    replica: Replica, server: asyncio.Server, orphan_grace_s: float, stopping: Stopping, node_gone: asyncio.Event
) -> None:
    """Serve until told to stop, and see the streams off."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(replica.run())
        orphan = group.create_task(_outlive_node(replica, node_gone, orphan_grace_s, stopping))
        await stopping.told.wait()
        server.close()
        await stopping.see_off(replica)
        running.cancel()
        orphan.cancel()


async def _outlive_node(replica: Replica, node_gone: asyncio.Event, grace_s: float, stopping: Stopping) -> None:
    """When the node is gone, serve on for as long as gateways use this replica, but not for ever."""
    await node_gone.wait()
    logger.warning("the node is gone; serving on for at most %g s", grace_s)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await replica.abandoned()
    stopping.tell()


async def run(
    channel: Channel,
    stdin: asyncio.StreamReader,
    load: Callable[[ReplicaSpecification], Awaitable[Engine]] = load_engine,
    end_now: Callable[[int], object] = os._exit,
    began: Callable[[Replica], None] = lambda _replica: None,
) -> int:
    """Be a replica, from the specification that `stdin` brings to the exit code. `load` makes the engine.

    `end_now(exit code)` ends the process without another word. `began` gets the replica once it serves.
    """
    try:
        specification = msgspec.json.decode(await stdin.readline(), type=ReplicaSpecification)
    except msgspec.DecodeError as error:
        channel.report(Failed(f"bad specification: {error}"))
        return 2
    try:
        await serve(specification, channel, stdin, load, end_now, began)
    except BaseExceptionGroup as group:
        return _failed(channel, _first_leaf(group))
    except Exception as error:
        return _failed(channel, error)
    return 0


def _first_leaf(error: BaseException) -> BaseException:
    """What went wrong first, out of the groups that task groups wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _failed(channel: Channel, error: BaseException) -> int:
    if isinstance(error, Misuse):
        channel.report(Failed(in_words(error)))
        return 2
    logger.error("the replica ends", exc_info=error)
    channel.report(Failed(in_words(error)))
    return 1


async def load_for_good(specification: ReplicaSpecification) -> Engine:
    """As `load_engine`, in a process of its own."""
    engine = await load_engine(specification)
    keep_for_good()
    return engine


async def _main(channel: Channel) -> int:
    return await run(channel, await _standard_input(), load_for_good)


def main() -> None:
    """Run the process; see the module's text."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # An engine that crashes in native code says nothing: where it was stands in the log then.
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    code = uvloop.run(_main(NodeChannel(output)))
    logging.shutdown()
    # Engines' threads may be stuck in a driver; nothing is left that an orderly interpreter exit would save.
    os._exit(code)


if __name__ == "__main__":
    main()
