"""What both clients do alike before anything is sent: settings checked, a call put together, secrets kept."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import msgspec

from holdfast.core.errors import InvalidConfig, Misuse
from holdfast.gateway.client.budget import RetryBudget
from holdfast.gateway.client.gateways import Gateways
from holdfast.gateway.client.machine import Call, CallMachine, Shared
from holdfast.gateway.client.policy import RetryPolicy
from holdfast.gateway.client.steps import Failed

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
LOGGER_NAME: Final = "holdfast.client"
LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=30.0)
"""How much goes on at once is the caller's choice: a pool's own queue would look like a slow gateway."""

_VISIBLE: Final = re.compile(r"[!-~]{1,4096}")
_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")
_HEADER: Final = re.compile(r"[a-z0-9-]{1,64}")
_HEADER_VALUE: Final = re.compile(r"[!-~]([ -~]{0,1022}[!-~])?")
_OWN_HEADERS: Final = frozenset(
    (
        "accept",
        "accept-encoding",
        "authorization",
        "content-length",
        "content-type",
        "host",
        "last-event-id",
        "x-request-id",
    )
)
_EVENT_ID: Final = re.compile(r"[!-~]([ -~]{0,4094}[!-~])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What may be set for one call. None is the client's own.

    deadline_s: in place of the policy's. request_id: sent as `x-request-id`, 1 to 128 visible ASCII characters.
    last_event_id: begin behind this event of a stream that was broken earlier (the body must be the same).
    headers: sent along, such as `x-holdfast-parent`, `x-holdfast-priority` or `traceparent`; not the client's own.
    """

    deadline_s: float | None = None
    request_id: str | None = None
    last_event_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


NO_OPTIONS: Final = Options()


class Setup:
    """A client's settings, and what its calls share. Raises `InvalidConfig`."""

    def __init__(
        self,
        base_urls: str | Sequence[str],
        api_key: str | None,
        policy: RetryPolicy | None,
        sticky: bool,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        if api_key is not None and not _VISIBLE.fullmatch(api_key):
            raise InvalidConfig("the API key is not usable: it must be 1 to 4096 visible ASCII characters")
        self.policy = policy or RetryPolicy()
        urls = (base_urls,) if isinstance(base_urls, str) else base_urls
        self.gateways = Gateways(urls, penalty_s=self.policy.gateway_penalty_s, sticky=sticky)
        budget = RetryBudget(
            ratio=self.policy.budget_ratio,
            per_s=self.policy.budget_per_s,
            burst=self.policy.budget_burst,
            now=clock(),
        )
        self._shared = Shared(self.policy, self.gateways, budget, random)
        self._secret = {"authorization": f"Bearer {api_key}"} if api_key is not None else {}

    def call(self, path: str, body: Mapping[str, Any], options: Options, *, streamed: bool) -> CallMachine:
        """A call that has not begun. Raises `Misuse`."""
        if not path.startswith("/"):
            raise Misuse(f"the path {path!r} must begin with a slash, as {CHAT}")
        if bool(body.get("stream", streamed)) != streamed:
            raise Misuse(
                "leave 'stream' out of the body: the method that is called says whether the answer is streamed"
            )
        given = {name: value for name, value in body.items() if name != "stream"}
        try:
            sent = msgspec.json.encode({**given, "stream": True} if streamed else given)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            raise Misuse(f"the body can't be written as JSON: {error}") from error
        request_id = options.request_id or f"req_{secrets.token_hex(12)}"
        if not _REQUEST_ID.fullmatch(request_id):
            raise Misuse("the request id must be 1 to 128 visible ASCII characters")
        last_event_id = options.last_event_id or ""
        if last_event_id and not (streamed and _EVENT_ID.fullmatch(last_event_id)):
            raise Misuse("last_event_id must be the id of a stream's event, as it came")
        deadline_s = self.policy.deadline_s if options.deadline_s is None else options.deadline_s
        if not 0 < deadline_s < float("inf"):
            raise Misuse(f"deadline_s is {deadline_s!r}; it must be a positive number of seconds")
        call = Call(path, sent, request_id, streamed, deadline_s, last_event_id, _headers(options.headers))
        return CallMachine(call, self._shared)

    def with_secret(self, headers: Mapping[str, str]) -> dict[str, str]:
        """A try's headers with the API key. The key is in no step, so that whoever logs steps does not log it."""
        return {**headers, **self._secret}

    def __repr__(self) -> str:
        return f"gateways={list(self.gateways.urls)}"


def _headers(given: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What a caller sends along. Raises `Misuse` for what can't be sent, or is the client's to say."""
    found = tuple((name.lower(), value) for name, value in given.items())
    for name, value in found:
        if not _HEADER.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise Misuse(f"the header {name!r} can't be sent: visible ASCII characters, please")
        if name in _OWN_HEADERS:
            raise Misuse(f"the header {name!r} is the client's own")
    return found


def failed(error: httpx.RequestError | TimeoutError) -> Failed:
    """httpx's errors, in the machine's words."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Failed("connect", error)
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return Failed("timeout", error)
    return Failed("broken", error)
