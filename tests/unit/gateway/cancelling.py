"""Gateways in this process over real replicas, that ask each other without sockets, and requests that go on and on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from holdfast.core.requests import EngineRequest
from holdfast.gateway.app import App, create_app
from holdfast.gateway.http_settings import HttpSettings
from holdfast.gateway.machine import Machine
from holdfast.gateway.peers import Answer as PeerAnswer
from tests.unit.gateway.client import COMPLETIONS, Answer, ask, completion, converse
from tests.unit.support.history import application
from tests.unit.support.replicas import PATIENCE_S, LocalReplica, Site, eventually

LONG = 4_000
"""Tokens of a request that goes on until somebody ends it."""


class Gateways:
    """Gateways by name. What one asks another goes straight into its app, and is noted in `asked`.

    `deaf` ones fail a call at once, `hung` ones never answer it.
    """

    def __init__(self, site: Site, **http: Any) -> None:
        self._site = site
        self._http = HttpSettings(**http)
        self._tasks: list[asyncio.Task[None]] = []
        self.apps: dict[str, App] = {}
        self.asked: list[tuple[str, str, str, str]] = []
        self.deaf: set[str] = set()
        self.hung: set[str] = set()

    async def __aenter__(self) -> Gateways:
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def start(self, name: str, **serving: Any) -> App:
        """One more gateway."""
        backend = await self._site.gateway(name, **serving)
        app = create_app(backend, self._http, name, Machine(ask=self._asks(name)), gateways=self._urls)
        self._tasks.append(asyncio.create_task(app.kinship.run()))
        self.apps[name] = app
        return app

    def _urls(self) -> dict[str, str]:
        return {name: f"http://{name}" for name in self.apps}

    def _asks(self, who: str) -> Any:
        async def asks(method: str, url: str, headers: Mapping[str, str], timeout_s: float) -> PeerAnswer:
            name, _, path = url.removeprefix("http://").partition("/")
            self.asked.append((who, name, method, f"/{path}"))
            if name in self.deaf:
                raise TimeoutError
            if name in self.hung:
                await asyncio.Event().wait()
            answer = await ask(self.apps[name], f"/{path}", headers=headers, method=method)
            return PeerAnswer(answer.status, answer.body)

        return asks


class Pending:
    """A request under way, whose client may leave."""

    def __init__(self, app: App, body: Mapping[str, Any], headers: Mapping[str, str], path: str) -> None:
        self._leaves = asyncio.Event()
        sent = [json.dumps(body).encode()]
        self.task = asyncio.create_task(converse(app, path, sent, headers, leaves=self._leaves))

    def leave(self) -> None:
        """The client goes away."""
        self._leaves.set()

    async def answer(self) -> Answer:
        """What came, once it has ended."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.task


def begin(
    app: App, request_id: str = "", *, parent: str = "", key: str = "", timeout_s: float | None = None, **fields: Any
) -> Pending:
    """A streamed completion, as long as may be."""
    headers = {"x-request-id": request_id or "r", "x-holdfast-parent": parent, "authorization": f"Bearer {key}"}
    if timeout_s is not None:
        headers["x-request-timeout-seconds"] = str(timeout_s)
    given = {name: value for name, value in headers.items() if value not in ("", "Bearer ")}
    return Pending(app, completion(**{"stream": True, "max_tokens": LONG, **fields}), given, COMPLETIONS)


def request_of(**fields: Any) -> EngineRequest:
    """What the engine is asked by `begin`."""
    from holdfast.core.requests import Sampling

    return EngineRequest(prompt="hold fast", max_tokens=LONG, sampling=Sampling(seed=7), **fields)


async def site_of(site: Site, replicas: int = 1, **arguments: Any) -> LocalReplica:
    """The model on so many replicas; the first."""
    site.deploy(application(replicas=replicas))
    found = [await site.replica(**{"itl_ms": 2, **arguments}) for _ in range(replicas)]
    return found[0]


async def listed(app: App, key: str = "") -> list[Any]:
    """All open requests, as this gateway tells them."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = await ask(app, "/v1/requests", headers=headers, method="GET")
    assert answer.status == 200, answer.body
    data: list[Any] = answer.json["data"]
    return data


async def cancelled(app: App, id_: str, mode: str = "kill", key: str = "") -> Answer:
    """Cancel it."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return await ask(app, f"/v1/requests/{id_}?mode={mode}", headers=headers, method="DELETE")


async def running(app: App, *ids: str) -> None:
    """Wait until these have brought tokens."""

    def they_have() -> bool:
        found = {one.id: one for one in app.requests.seen(None, 1000)}
        return all(id_ in found and found[id_].completion_tokens >= 3 for id_ in ids)

    await eventually(they_have)
