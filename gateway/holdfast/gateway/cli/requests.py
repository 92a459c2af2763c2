"""`holdfast requests`: which requests are open, and their cancellation, through any gateway that answers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from holdfast.gateway.cli.options import DataDirOption, EtcdOption, JsonOption, NatsOption
from holdfast.gateway.cli.running import EXIT_FAILED, execute

if TYPE_CHECKING:
    from holdfast.gateway.settings import Settings

app = typer.Typer(
    help="Show requests that are open, and cancel them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

TIMEOUT_S = 5.0
"""How long a gateway may take to answer, in seconds: it asks the others, which takes up to a second."""

LIMIT = 1_000

KeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="An API key: its requests are shown, or everybody's with an admin's key. "
        "[default: the first of HOLDFAST_HTTP__ADMIN_KEYS, else of HOLDFAST_HTTP__API_KEYS]",
        show_default=False,
    ),
]
GatewayOption = Annotated[
    list[str] | None,
    typer.Option(
        "--gateway",
        metavar="URL",
        help="A gateway to ask, as http://host:8000. Repeat it for others to try. [default: the cluster's]",
        show_default=False,
    ),
]


class _Asking(NamedTuple):
    """Whom a command asks, and with what key: these gateways, or those of the cluster."""

    gateway: list[str] | None
    api_key: str | None
    data_dir: Path
    nats: list[str] | None
    etcd: list[str] | None


class Mode(StrEnum):
    """How a request is cancelled."""

    STOP = "stop"
    KILL = "kill"


@app.command("ls", epilog="Example\n\n`holdfast requests ls --json | jq '.data[].id'`")
def list_requests(
    gateway: GatewayOption = None,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = Path(".holdfast"),
    nats: NatsOption = None,
    etcd: EtcdOption = None,
) -> None:
    """Show the requests that are open at all gateways, the oldest first.

    At most 1000 of each gateway. Exit code 1 when a gateway did not say which it has.
    """
    execute(_list(_Asking(gateway, api_key, data_dir, nats, etcd), as_json))


@app.command(epilog="Example\n\n`holdfast requests cancel req_4f0c --mode stop`")
def cancel(
    request: Annotated[str, typer.Argument(metavar="ID", help="The request's x-request-id, or its answer's id.")],
    mode: Annotated[
        Mode, typer.Option(help="stop: it ends well with what there is. kill: it ends at once, with an error.")
    ] = Mode.KILL,
    gateway: GatewayOption = None,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = Path(".holdfast"),
    nats: NatsOption = None,
    etcd: EtcdOption = None,
) -> None:
    """End a request, at whichever gateway it is, and all requests that belong to it.

    One that was cancelled lately is told again. Exit code 1 when it is not open.
    """
    execute(_cancel(_Asking(gateway, api_key, data_dir, nats, etcd), request, mode, as_json))


async def _list(asking: _Asking, as_json: bool) -> None:
    from holdfast.gateway.cli.tables import console, print_json, table

    answer = await _asked(asking, "GET", f"/v1/requests?limit={LIMIT}")
    if as_json:
        print_json(answer)
    else:
        names = ("id", "model", "state", "gateway", "replicas", "completion_tokens", "age_s", "priority", "parent")
        rows = [[_cell(one[name]) for name in names] for one in answer["data"]]
        heads = ["TOKENS" if name == "completion_tokens" else name.upper() for name in names]
        console().print(table("Open requests", heads, rows))
    if answer["unreached"]:
        if not as_json:
            console(to_error=True).print(f"not known: the requests of {', '.join(answer['unreached'])}")
        raise SystemExit(EXIT_FAILED)


async def _cancel(asking: _Asking, request: str, mode: Mode, as_json: bool) -> None:
    from holdfast.gateway.cli.tables import print_json
    from holdfast.gateway.telling import path_of

    answer = await _asked(asking, "DELETE", path_of(request, f"mode={mode}"))
    if as_json:
        print_json(answer)
    else:
        below = answer["cancelled"] - 1
        more = f", and {below} that belong to it" if below > 0 else ""
        print(f"{answer['id']} ended by {answer['cause']} after {answer['completion_tokens']} tokens{more}")


def _cell(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value


async def _asked(asking: _Asking, method: str, path: str) -> Any:
    """What the first gateway says that answers. Raises `Misuse`, `WorldFailure`."""
    from holdfast.core.errors import WorldFailure
    from holdfast.gateway.settings import load_settings

    settings = load_settings()
    urls = [url.rstrip("/") for url in asking.gateway] if asking.gateway else await _urls(asking)
    headers = _headers(settings, asking.api_key)
    failures = []
    for url in urls:
        try:
            return await _answer(method, f"{url}{path}", headers)
        except OSError as error:
            failures.append(f"{url}: {error}")
    raise WorldFailure(f"no gateway answers ({'; '.join(failures) or 'the cluster has none'})")


async def _answer(method: str, url: str, headers: dict[str, str]) -> Any:
    """Raises `OSError` where no answer comes, `WorldFailure` for one that is an error."""
    import msgspec

    from holdfast.core.decoding import UNDECODABLE
    from holdfast.core.errors import WorldFailure
    from holdfast.gateway.peers import ask_by_httpx

    try:
        answer = await ask_by_httpx(method, url, headers, TIMEOUT_S)
        body = msgspec.json.decode(answer.body, type=dict[str, Any])
        message = "" if answer.status == 200 else str(body["error"]["message"])
    except TimeoutError as error:
        raise OSError(f"no answer within {TIMEOUT_S:g} s") from error
    except (*UNDECODABLE, KeyError, TypeError) as error:
        raise OSError(f"what answers is no gateway: {error}") from error
    if message:
        raise WorldFailure(message)
    return body


def _headers(settings: Settings, api_key: str | None) -> dict[str, str]:
    keys = [key.get_secret_value() for key in (*settings.http.admin_keys, *settings.http.api_keys)]
    chosen = api_key or next(iter(keys), None)
    return {"authorization": f"Bearer {chosen}".encode().decode("latin-1")} if chosen else {}


async def _urls(asking: _Asking) -> list[str]:
    """Gateways that may live: by what `up` noted, else by the log."""
    from holdfast.core.cluster import MemberStatus
    from holdfast.gateway.cli.finding import find_cluster
    from holdfast.gateway.cli.reading import read_log

    found = find_cluster(asking.data_dir, asking.nats, asking.etcd)
    if found.cluster is not None and (noted := [one.url for one in found.cluster.gateways if one.url]):
        return noted
    gateways = (await read_log(found.settings)).state.gateways.values()
    return [one.url for one in gateways if one.status in (MemberStatus.ALIVE, MemberStatus.STOPPING)]
