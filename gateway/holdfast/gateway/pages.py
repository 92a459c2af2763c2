"""The routes that are not on the hot path: models, health, metrics, documentation. Plain Starlette."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, Final

import msgspec
import swagger_ui_bundle  # type: ignore[import-untyped]
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from holdfast.actors.metrics import CONTENT_TYPE
from holdfast.core.errors import RequestRefused, UnknownModel
from holdfast.gateway.backend import Backend, ModelInfo
from holdfast.gateway.busy_threshold import BusyThresholdPages
from holdfast.gateway.exchange import KeyRing
from holdfast.gateway.http_settings import HttpSettings
from holdfast.gateway.metrics import Metrics
from holdfast.gateway.openai import HealthReport, Model, ModelList
from holdfast.gateway.openapi import document
from holdfast.gateway.problems import HttpRefusal, Problem, method_not_allowed, not_found, problem_of
from holdfast.gateway.request_pages import RequestPages

DOCS_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Holdfast: HTTP API</title>
<link rel="stylesheet" href="/docs/static/swagger-ui.css">
<link rel="icon" type="image/png" href="/docs/static/favicon-32x32.png" sizes="32x32">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/static/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true})</script>
</body>
</html>
"""

Endpoint = Callable[[Request], Awaitable[Response]]


def create_pages(
    backend: Backend,
    settings: HttpSettings,
    gateway: str,
    metrics: Metrics,
    keys: KeyRing,
    requests: RequestPages,
) -> Starlette:
    """The Starlette application for everything but the generating routes, which it knows only as POST-only."""
    pages = _Pages(backend, settings, gateway, metrics, keys)
    thresholds = BusyThresholdPages(backend, keys, settings.body_timeout_s)
    get = ["GET"]
    routes = [
        Route("/v1/chat/completions", pages.unreachable, methods=["POST"]),
        Route("/v1/completions", pages.unreachable, methods=["POST"]),
        Route("/v1/models", pages.models, methods=get),
        Route("/v1/models/{model:path}", pages.model, methods=get),
        Route("/v1/requests", requests.list, methods=get),
        Route("/v1/requests/{id:path}", requests.cancel, methods=["DELETE"]),
        Route("/v1/requests/{id:path}", requests.adopt, methods=["POST"], include_in_schema=False),
        Route("/busy_threshold", thresholds.answer, methods=["GET", "POST"]),
        Route("/health", pages.health, methods=get),
        Route("/live", pages.live, methods=get),
        Route("/metrics", pages.metrics, methods=get),
        Route("/-/healthz", pages.healthz, methods=get),
        Route("/-/routes", pages.routes, methods=get),
        Route("/openapi.json", pages.openapi, methods=get),
        Route("/docs", pages.docs, methods=get),
        Mount("/docs/static", StaticFiles(directory=swagger_ui_bundle.swagger_ui_path)),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _http_error,
            HttpRefusal: _error,
            UnknownModel: _error,
            RequestRefused: _error,
        },
    )
    app.router.redirect_slashes = False
    return app


class _Pages:
    """The endpoints, over the backend that they tell about."""

    def __init__(self, backend: Backend, settings: HttpSettings, gateway: str, metrics: Metrics, keys: KeyRing) -> None:
        self._backend = backend
        self._gateway = gateway
        self._metrics = metrics
        self._keys = keys
        self._settings = settings

    @cached_property
    def _document(self) -> bytes:
        """Made when somebody first asks: it takes longer than all else at a gateway's start."""
        return msgspec.json.encode(document(self._settings))

    async def unreachable(self, request: Request) -> Response:
        raise AssertionError(f"{request.url.path} is dispatched before the router")

    async def models(self, request: Request) -> Response:
        self._check(request)
        return _json(ModelList("list", [_model(info) for info in self._backend.models()]))

    async def model(self, request: Request) -> Response:
        self._check(request)
        name = request.path_params["model"]
        for info in self._backend.models():
            if info.id == name:
                return _json(_model(info))
        raise UnknownModel(name)

    async def health(self, request: Request) -> Response:
        health = self._backend.health()
        report = HealthReport(
            "healthy" if health.healthy else "unhealthy",
            health.state.value,
            self._gateway,
            health.reasons,
            health.details,
        )
        return _json(report, 200 if health.healthy else 503)

    async def live(self, request: Request) -> Response:
        return _json({"status": "alive"})

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def healthz(self, request: Request) -> Response:
        health = self._backend.health()
        if health.healthy:
            return PlainTextResponse("success")
        return PlainTextResponse("; ".join(health.reasons) or "unhealthy", 503)

    async def routes(self, request: Request) -> Response:
        applications = sorted({info.application for info in self._backend.models()})
        return _json({path: applications for path in ("/v1/chat/completions", "/v1/completions")})

    async def openapi(self, request: Request) -> Response:
        return Response(self._document, media_type="application/json")

    async def docs(self, request: Request) -> Response:
        return HTMLResponse(DOCS_PAGE)

    def _check(self, request: Request) -> None:
        authorization = request.headers.get("authorization")
        self._keys.check(None if authorization is None else authorization.encode("latin-1"))


def _model(info: ModelInfo) -> Model:
    return Model(
        id=info.id,
        object="model",
        created=int(info.created.timestamp()),
        owned_by=info.application,
        max_model_len=info.context_tokens_max or None,
        replicas_running=info.replicas_running,
        replicas_wanted=info.replicas_wanted,
    )


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _problem(problem: Problem) -> Response:
    headers = {name.decode(): value.decode() for name, value in problem.headers()}
    return Response(problem.body(), problem.status, headers, media_type="application/json")


async def _error(request: Request, error: Exception) -> Response:
    return _problem(problem_of(error, ""))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow")
        return _problem(method_not_allowed(method, path, allow))
    if error.status_code == 404:
        return _problem(not_found(method, path))
    return _problem(Problem(error.status_code, error.detail, None))
