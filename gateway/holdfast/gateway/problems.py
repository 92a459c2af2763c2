"""Every error that a client can get, in OpenAI's shape.

An error is found once (`problem_of`), whether it then becomes a response with a status or, after the first
token, an event in the stream. What we did not foresee is logged with its traceback and told as a plain 500.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import msgspec

from holdfast.core.errors import (
    DeadlineExceeded,
    GatewayStopping,
    HoldfastError,
    NoReplica,
    Overloaded,
    RequestCancelled,
    RequestRefused,
    StreamLost,
    UnknownModel,
)
from holdfast.core.frames import TAKEN_OVER

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a request whose client did not want its answer any more. No RFC has one."""

RETRY_AFTER_LOST_S = 1.0
"""A request whose replicas were lost may be sent again after so long (seconds) while there are others: they take over
within that."""

OUTCOMES = {408: "slow_client", CLIENT_CLOSED_REQUEST: "cancelled", 504: "deadline"}
"""What requests that ended in these are called in the metrics."""

RETRY_AFTER_MAX_S = 86_400.0
INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
OVERLOADED = "overloaded"

REASON = "x-holdfast-reason"
"""The header that says why a request was rejected."""
STREAM_LOST = "stream_lost"


class ErrorInfo(msgspec.Struct, frozen=True):
    """What went wrong. `param` names the field at fault, `code` is for programs, `message` for people."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every response that is not a success."""

    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as a client sees it. `retry_after_s` is rounded up to whole seconds for the header `Retry-After`.

    `reason` is why a request was rejected, for the header `x-holdfast-reason`.
    """

    status: int
    message: str
    code: str | None
    param: str | None = None
    retry_after_s: float | None = None
    allow: str | None = None
    reason: str = ""

    @property
    def outcome(self) -> str:
        """The request's outcome in the metrics."""
        named = OUTCOMES.get(self.status)
        if named is not None:
            return named
        if self.retry_after_s is not None and self.code != STREAM_LOST:
            return "overloaded"
        return "refused" if self.status < 500 else "failed"

    def body(self) -> bytes:
        """The error in OpenAI's JSON."""
        kind = SERVER_ERROR if self.status >= 500 or self.retry_after_s is not None else INVALID_REQUEST
        message = self.message.encode("utf-8", "replace").decode()
        return msgspec.json.encode(ErrorBody(ErrorInfo(message, kind, self.param, self.code)))

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that come with this error."""
        found = []
        if self.retry_after_s is not None:
            after_s = min(max(self.retry_after_s, 0.0), RETRY_AFTER_MAX_S)
            found.append((b"retry-after", b"%d" % max(1, math.ceil(after_s))))
            # OpenAI's clients read this one first: whole seconds would bring back together who was rejected together.
            found.append((b"retry-after-ms", b"%d" % max(1, math.ceil(after_s * 1000))))
        if self.reason:
            found.append((REASON.encode(), self.reason.encode()))
        if self.allow is not None:
            found.append((b"allow", self.allow.encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        return found


class HttpRefusal(HoldfastError):
    """The request is refused for a reason that only HTTP knows: a key, a size, a method, a media type."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def unauthorized(given: bool) -> HttpRefusal:
    """401: the client sent no API key, or one that is not ours."""
    if given:
        return HttpRefusal(Problem(401, "Incorrect API key provided.", "invalid_api_key"))
    message = "You didn't provide an API key. Send it as a header: Authorization: Bearer YOUR_KEY."
    return HttpRefusal(Problem(401, message, "invalid_api_key"))


def forbidden(message: str, code: str, param: str | None = None) -> HttpRefusal:
    """403: the API key is one of ours, and does not have this right."""
    return HttpRefusal(Problem(403, message, code, param))


def body_too_large(bytes_max: int) -> HttpRefusal:
    """413: the body is longer than the setting allows."""
    return HttpRefusal(Problem(413, f"The request body is longer than {bytes_max} bytes.", "request_too_large"))


def body_too_slow(timeout_s: float) -> HttpRefusal:
    """408: the body did not arrive in time."""
    message = f"The request body did not arrive within {round(timeout_s, 2):g} s."
    return HttpRefusal(Problem(408, message, "request_timeout"))


def unsupported_media_type(given: str) -> HttpRefusal:
    """415: the body is said to be something else than JSON."""
    message = f"Unsupported content type {given!r}: send JSON with the header Content-Type: application/json."
    return HttpRefusal(Problem(415, message, "unsupported_media_type"))


def not_found(method: str, path: str) -> Problem:
    """404: there is no such route."""
    return Problem(404, f"Invalid URL ({method} {path})", "unknown_url")


def method_not_allowed(method: str, path: str, allow: str | None) -> Problem:
    """405: the route is there, the method is not."""
    message = f"Not allowed to {method} on {path}; use {allow or 'another method'}."
    return Problem(405, message, "method_not_allowed", allow=allow)


def rejected_with(problem: Problem, status: int) -> Problem:
    """The same with the status that rejections are to have, if it is one."""
    return replace(problem, status=status) if problem.code == OVERLOADED else problem


INTERNAL = Problem(500, "The server had an error while processing your request.", "internal_error")


def problem_of(error: BaseException, request_id: str) -> Problem:
    """What a client is told about `error`. Logs with traceback what was not raised on purpose."""
    match error:
        case HttpRefusal():
            return error.problem
        case RequestRefused():
            return Problem(409 if error.code == TAKEN_OVER else 400, error.message, error.code, error.param)
        case UnknownModel():
            return Problem(404, str(error), "model_not_found", "model")
        case NoReplica():
            return Problem(503, str(error), "no_replica", retry_after_s=error.retry_after_s, reason=error.reason)
        case GatewayStopping():
            return Problem(503, str(error), "gateway_stopping", retry_after_s=error.retry_after_s)
        case Overloaded():
            return Problem(503, str(error), OVERLOADED, retry_after_s=error.retry_after_s, reason=error.reason)
        case DeadlineExceeded():
            return Problem(504, str(error), "deadline_exceeded")
        case RequestCancelled():
            return Problem(CLIENT_CLOSED_REQUEST, str(error), error.code)
        case StreamLost():
            after_s = RETRY_AFTER_LOST_S if error.retry_after_s is None else error.retry_after_s
            return Problem(503, str(error), STREAM_LOST, retry_after_s=after_s)
    log.error("request %s: unexpected error", request_id, exc_info=error)
    return INTERNAL


def invalid(message: str, param: str | None, code: str = "invalid_value") -> RequestRefused:
    """400 for a field that can't be right."""
    return RequestRefused(message, code=code, param=param)


def unsupported(param: str, why: str) -> RequestRefused:
    """400 for something that OpenAI has and this server can't honour; better than a wrong answer."""
    return RequestRefused(f"Unsupported: '{param}' {why}", code="unsupported_value", param=param)
