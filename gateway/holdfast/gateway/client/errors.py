"""What a client's call can end in, one class for each situation that a caller would tell apart."""

from __future__ import annotations

from holdfast.core.errors import HoldfastError, Misuse, PeerViolation, WorldFailure


class ClientError(HoldfastError):
    """Base of all errors that a call ends in.

    `request_id` names the request in the gateways' logs, `tries` says how often it was sent, and `last_event_id`
    is where another call could resume the stream ("" if nothing was delivered).
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = ""
        self.last_event_id = ""
        self.tries = 0

    def __str__(self) -> str:
        if not self.request_id:
            return self.message
        return f"{self.message} (request {self.request_id}, {self.tries} {'try' if self.tries == 1 else 'tries'})"


class ApiError(ClientError):
    """A gateway answered with an error in OpenAI's shape.

    `status` is None where it came as an event within a stream; `retry_after_s` is what the gateway asked for.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


class Refused(ApiError, Misuse):
    """The request itself is at fault (a field, the key, the model's name). Sending it again will not help."""


class Unavailable(ApiError, WorldFailure):
    """The gateways could not serve the request for now (408, 429, 502, 503, 504, 529), at the last try either."""


class ServerFault(ApiError, WorldFailure):
    """The server failed (500 and the like), or ended the stream with an error event."""


class ConnectionFailed(ClientError, WorldFailure):
    """A gateway could not be reached, was silent for too long, or cut the connection, at the last try either."""


class StreamBroken(ClientError, WorldFailure):
    """The stream broke after some events and could not be taken up again. What was delivered is right, but not all."""


class CannotResume(StreamBroken):
    """A gateway said that it can't go on with this stream: its tokens are gone and can't be drawn again."""


class DeadlinePassed(ClientError, WorldFailure):
    """The call's deadline passed, or would pass before the next try. The cause is what went wrong last, if anything."""


class BadAnswer(ClientError, PeerViolation):
    """The answer is not what this API gives: another content type, no JSON, an event beyond all bounds."""
