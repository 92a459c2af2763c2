"""The transport to etcd's JSON gateway over HTTP, through `httpx`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from holdfast.core.errors import InvalidConfig
from holdfast.store.etcd_transport import OK, NoAnswer, NotSent, Reply, Silent
from holdfast.store.settings import EtcdSettings

KEPT_PER_ENDPOINT = 1
"""Idle connections that are kept open. When they are half-open, each costs one call a try."""


class HttpTransport:
    """Implements `Transport`. Raises `InvalidConfig` when the certificates can't be used."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._client = httpx.AsyncClient(
            verify=_tls_context(settings),
            trust_env=False,
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=len(settings.endpoints) * KEPT_PER_ENDPOINT
            ),
        )

    async def get(self, endpoint: str, path: str, timeout_s: float) -> Reply:
        with _told():
            response = await self._client.get(f"{endpoint}{path}", timeout=timeout_s)
        return response.status_code, _parsed(response.content, response.status_code)

    async def post(
        self, endpoint: str, path: str, payload: dict[str, Any], headers: dict[str, str], timeout_s: float
    ) -> Reply:
        with _told():
            response = await self._client.post(f"{endpoint}{path}", json=payload, headers=headers, timeout=timeout_s)
        return response.status_code, _parsed(response.content, response.status_code)

    async def lines(
        self,
        endpoint: str,
        path: str,
        payload: dict[str, Any],
        headers: dict[str, str],
        *,
        timeout_s: float,
        silence_s: float,
    ) -> AsyncGenerator[Reply, None]:
        timeout = httpx.Timeout(timeout_s, read=silence_s)
        with _told(Silent):
            async with self._client.stream(
                "POST", f"{endpoint}{path}", json=payload, headers=headers, timeout=timeout
            ) as response:
                status = response.status_code
                if status != OK:
                    yield status, _parsed(await response.aread(), status)
                    return
                async for line in response.aiter_lines():
                    yield status, json.loads(line)

    async def close(self) -> None:
        await self._client.aclose()


@contextmanager
def _told(read_timeout: type[NoAnswer] = NoAnswer) -> Iterator[None]:
    """Raise what an error of httpx means to a client of etcd."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise NotSent(_text(error)) from error
    except httpx.ReadTimeout as error:
        raise read_timeout(_text(error)) from error
    except httpx.HTTPError as error:
        raise NoAnswer(_text(error)) from error


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _parsed(content: bytes, status: int) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        if status == OK:
            raise
        return None


def _tls_context(settings: EtcdSettings) -> Any:
    if not settings.uses_tls:
        return False  # Plain HTTP on every endpoint: spare the loading of authorities.
    try:
        return settings.tls_context()
    except OSError as error:
        raise InvalidConfig(f"tls_ca_file, tls_cert_file or tls_key_file can't be used: {error}") from error
