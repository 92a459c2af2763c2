"""`holdfast log`: what happened in the cluster, and why."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.gateway.cli.options import DataDirOption, EtcdOption, JsonOption, NatsOption
from holdfast.gateway.cli.running import execute, plain

if TYPE_CHECKING:
    from holdfast.core.events import Record
    from holdfast.store.jetstream import JetStreamLog

TAIL_EPILOG = """
Examples

`holdfast log tail` shows the last 20 events.

`holdfast log tail -n 0 -f` waits for what happens next.

`holdfast log tail -n 1000 --json | jq 'select(.payload.type == "ReplicaExited")'`
"""
SHOW_EPILOG = """
Examples

`holdfast log show 17` shows the event at sequence 17, and the chain of causes that led to it.

`holdfast log show node-1.1c606f0a.d4` shows the event of this id.
"""

CAUSES_MAX = 10_000
"""A chain of causes is followed this far."""

app = typer.Typer(no_args_is_help=True, help="What happened in the cluster, and why.")


@app.command(epilog=TAIL_EPILOG)
def tail(
    number: Annotated[int, typer.Option("-n", min=0, max=1_000_000, help="How many of the last events.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events until Ctrl-C.")] = False,
    as_json: JsonOption = False,
    data_dir: DataDirOption = Path(".holdfast"),
    nats: NatsOption = None,
    etcd: EtcdOption = None,
) -> None:
    """Show the last events: sequence, time, writer, what happened, and the id of its cause.

    With --json every event is one line: its envelope, with `sequence` and `subject` put before it.
    """
    execute(_tail(number, follow, as_json, (data_dir, nats, etcd)))


@app.command(epilog=SHOW_EPILOG)
def show(
    event: Annotated[str, typer.Argument(metavar="SEQUENCE|EVENT_ID", help="Which event.", show_default=False)],
    as_json: JsonOption = False,
    data_dir: DataDirOption = Path(".holdfast"),
    nats: NatsOption = None,
    etcd: EtcdOption = None,
) -> None:
    """Show one event with its envelope, its payload, and the chain of its causes back to the first.

    With --json the event and its causes are one object a line, the event first.
    """
    execute(_show(event, as_json, (data_dir, nats, etcd)))


Where = tuple[Path, list[str] | None, list[str] | None]


@contextlib.asynccontextmanager
async def _log(where: Where) -> AsyncIterator[JetStreamLog]:
    from holdfast.gateway.cli.finding import find_cluster
    from holdfast.gateway.cli.reading import existing_log

    async with existing_log(find_cluster(*where).settings) as log:
        yield log


async def _records(log: JetStreamLog, after: int, until: int | None) -> AsyncGenerator[Record, None]:
    """Decoded entries after a sequence, up to another or for ever."""
    from holdfast.core.entries import decode_record

    if until is not None and after >= until:
        return
    async with contextlib.aclosing(log.follow(after)) as entries:
        async for entry in entries:
            yield decode_record(entry)
            if until is not None and entry.sequence >= until:
                return


async def _tail(number: int, follow: bool, as_json: bool, where: Where) -> None:
    async with _log(where) as log:
        status = await log.status()
        first = max(status.last_sequence - number, status.first_sequence - 1, 0)
        async with contextlib.aclosing(_records(log, first, None if follow else status.last_sequence)) as records:
            async for record in records:
                _print(record, as_json)


async def _show(wanted: str, as_json: bool, where: Where) -> None:
    async with _log(where) as log:
        chain = await _find(log, wanted)
    if as_json:
        for record in chain:
            _print(record, as_json)
    else:
        _explain(chain)


async def _find(log: JetStreamLog, wanted: str) -> list[Record]:
    """The event, then its cause, then that one's cause, and so on. Raises `Misuse` when there is no such event."""
    from holdfast.core.errors import Misuse

    status = await log.status()
    sequence = int(wanted) if wanted.isdecimal() else None
    if sequence is not None and not status.first_sequence <= sequence <= status.last_sequence:
        raise Misuse(f"no event {wanted}: the log goes from {status.first_sequence} to {status.last_sequence}")
    known: dict[str, Record] = {}
    async with contextlib.aclosing(_records(log, status.first_sequence - 1, status.last_sequence)) as records:
        async for record in records:
            known[record.event.id] = record
            if wanted == record.event.id or sequence == record.sequence:
                return _chain(record, known)
    raise Misuse(f"no event {wanted} in the log: `holdfast log tail` shows sequences and ids")


def _chain(record: Record, known: dict[str, Record]) -> list[Record]:
    """A cause is always earlier in the log than what it led to, so this ends."""
    chain = [record]
    while len(chain) < CAUSES_MAX:
        cause = known.get(chain[-1].event.cause or "")
        if cause is None or cause is chain[-1]:
            break
        chain.append(cause)
    return chain


# --- printing -------------------------------------------------------------------------------------------


def _print(record: Record, as_json: bool) -> None:
    from holdfast.gateway.cli.tables import print_json

    if as_json:
        print_json(_object(record), indent=0)
    else:
        print(_line(record), flush=True)


def _object(record: Record) -> dict[str, Any]:
    import msgspec

    return {"sequence": record.sequence, "subject": record.subject, **msgspec.to_builtins(record.event)}


def _line(record: Record) -> str:
    from holdfast.core.events import type_name

    event = record.event
    parts = [
        f"{record.sequence:>6}",
        f"{event.time:%H:%M:%S.%f}"[:-3],
        f"{event.writer:<10}",
        f"{type_name(event.payload):<18}",
        _details(event.payload),
    ]
    if event.epoch:
        parts.append(f"[epoch {event.epoch}]")
    if event.cause:
        parts.append(f"<- {event.cause}")
    return " ".join(part for part in parts if part)


def _details(payload: Any) -> str:
    """The payload's fields, the short ones, in one line."""
    import msgspec

    fields = msgspec.to_builtins(payload)
    shown = []
    for name, value in fields.items():
        if name in ("type", "info") or value is None or value == "":
            continue
        if name == "application" and isinstance(value, dict):
            shown += [f"{item['name']}={item['num_replicas']}x" for item in value["deployments"]]
        elif isinstance(value, dict):
            shown.append(f"{name}=({', '.join(f'{one}={what}' for one, what in value.items())})")
        else:
            shown.append(f"{name}={value}")
    return plain(" ".join(shown))


def _explain(chain: list[Record]) -> None:
    import msgspec
    from rich.markup import escape

    from holdfast.gateway.cli.tables import console

    out = console()
    record = chain[0]
    out.print(f"[bold]{escape(record.event.id)}[/]  sequence {record.sequence} on {escape(record.subject)}")
    for name, value in msgspec.to_builtins(record.event).items():
        if name not in ("id", "payload"):
            out.print(f"  {name:<12} {escape(str(value))}", soft_wrap=True)
    out.print("  payload")
    payload = msgspec.json.format(msgspec.json.encode(record.event.payload), indent=2).decode()
    out.print("\n".join(f"    {line}" for line in payload.splitlines()), markup=False, soft_wrap=True)
    out.print(
        "\n[bold]because of[/]" if len(chain) > 1 else "\nIt has no cause in the log: it is where a chain begins."
    )
    for cause in chain[1:]:
        out.print(_line(cause), markup=False, soft_wrap=True)
