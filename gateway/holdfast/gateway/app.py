"""The gateway's HTTP side as an ASGI application.

The two routes that generate tokens are dispatched here by their path and go straight to the backend; everything
else goes through Starlette. Serve it with Granian's asyncio task implementation (the default): a request's
task must be a real one, which a client that has gone cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.types import Message, Receive, Scope, Send

from holdfast.actors.metric_families import CANCELLATIONS, UNTOLD
from holdfast.actors.metrics import Ledger
from holdfast.gateway.backend import Backend
from holdfast.gateway.exchange import KeyRing, request_id_of
from holdfast.gateway.generate import CHAT, COMPLETIONS, Generator
from holdfast.gateway.http_settings import HttpSettings
from holdfast.gateway.kinship import Kinship
from holdfast.gateway.machine import Machine
from holdfast.gateway.metrics import Metrics
from holdfast.gateway.pages import create_pages
from holdfast.gateway.peers import Peers
from holdfast.gateway.problems import problem_of
from holdfast.gateway.request_pages import RequestPages
from holdfast.gateway.requests import Requests
from holdfast.gateway.tracing import Tracer

__all__ = ["App", "HttpSettings", "create_app"]


class App:
    """The ASGI application. `metrics.in_flight` tells a drain how many requests have no end yet.

    `requests` are those that are open. `kinship.run()` asks other gateways for the parents of those, and tells them of
    what was cancelled.
    """

    def __init__(
        self,
        backend: Backend,
        settings: HttpSettings,
        gateway: str,
        machine: Machine,
        ledger: Ledger | None,
        gateways: Callable[[], Mapping[str, str]],
        tracer: Tracer,
    ) -> None:
        self._entropy = machine.entropy
        self.requests = Requests(gateway)
        peers = Peers(gateway, gateways, machine.ask)
        self.kinship = Kinship(self.requests, peers)
        self.metrics = Metrics(gateway, ledger)
        self.metrics.ledger.read(CANCELLATIONS, self.requests.cancellations.items)
        self.metrics.ledger.read(UNTOLD, self.kinship.tellings.untold.items)
        keys = KeyRing(settings)
        self._stamp = (b"x-holdfast-gateway", gateway.encode())
        pages = RequestPages(self.requests, self.kinship, peers, keys)
        self._pages = create_pages(backend, settings, gateway, self.metrics, keys, pages)
        self._generator = Generator(
            backend, settings, self.metrics, keys, self._stamp, machine, self.requests, self.kinship, tracer
        )
        self._forms = {form.route: form for form in (CHAT, COMPLETIONS)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP exchange, or the server's lifespan."""
        if scope["type"] == "http":
            form = self._forms.get(scope["path"])
            if form is not None and scope["method"] == "POST":
                await self._generator.serve(form, scope, receive, send)
            else:
                await self._page(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._pages(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = request_id_of(dict(scope["headers"]).get(b"x-request-id"), self._entropy)
        started = False

        async def stamped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id), self._stamp]
            await send(message)

        try:
            await self._pages(scope, receive, stamped)
        except Exception as error:
            problem = problem_of(error, request_id.decode())
            if started:
                return
            body = problem.body()
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            await stamped({"type": "http.response.start", "status": problem.status, "headers": headers})
            await stamped({"type": "http.response.body", "body": body})


def create_app(
    backend: Backend,
    settings: HttpSettings | None = None,
    gateway: str = "gateway",
    machine: Machine | None = None,
    ledger: Ledger | None = None,
    gateways: Callable[[], Mapping[str, str]] = dict,
    tracer: Tracer | None = None,
) -> App:
    """The HTTP side over `backend`. One per gateway, whose name is `gateway`; needs a loop only to serve.

    What happens is counted in `ledger`, which the gateway's `/metrics` shows. `gateways()` are the URLs of all
    gateways that may live, by name. Requests are traced by `tracer`, if any.
    """
    return App(backend, settings or HttpSettings(), gateway, machine or Machine(), ledger, gateways, tracer or Tracer())
