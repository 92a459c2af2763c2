"""Every error that Holdfast raises on purpose, under one base class.

The class says whose fault it was, so that a caller can tell "mend your input" from "try again":
`Misuse` (the caller), `PeerViolation` (the other end of a protocol), `WorldFailure` (servers, network, disk).
"""

WORDS_CHARS_MAX = 1_000
"""So much of an exception's text is passed on, in reports and into the log, where it is kept for ever."""


def in_words(error: BaseException) -> str:
    """What an exception of anybody's says, and its kind unless that is a `Misuse`: bounded, and fit to be encoded."""
    try:
        text = str(error)
    except Exception as broken:
        text = f"(its text can't be had: {type(broken).__name__})"
    words = text if isinstance(error, Misuse) else f"{type(error).__name__}: {text}"
    return words[:WORDS_CHARS_MAX].encode(errors="backslashreplace").decode()


class HoldfastError(Exception):
    """Base of all errors raised on purpose. Its text says what was wrong, where, and what to do."""


class Misuse(HoldfastError):
    """The caller asked for something that can't be: bad configuration, bad argument. Command lines exit with 2."""


class PeerViolation(HoldfastError):
    """The other end broke the protocol; the connection to it is closed."""


class WorldFailure(HoldfastError):
    """A server, the network or the disk failed us. Trying again later may work."""


class InvalidConfig(Misuse):
    """An application's configuration or a setting is wrong; the text names the field."""


class FrameError(PeerViolation):
    """A wire frame is too long, is not msgpack, or is of an unknown type."""


class WrongReplica(PeerViolation):
    """The process at an address is not the replica that the log says is there (the port was used again)."""


class OutOfMemory(WorldFailure):
    """There was no room for an engine, in the host's memory or the device's, when it was made."""


class UnknownEventVersion(WorldFailure):
    """The log holds an event that this version of Holdfast can't read; upgrade this process."""


class CorruptLog(WorldFailure):
    """The log contradicts itself: a broken hash chain or a sequence missing from the middle."""


class LogUnavailable(WorldFailure):
    """The log servers could not be reached in time. An append's outcome is then unknown until it is read back."""


class LogFull(LogUnavailable):
    """The stream is at its limits and refuses appends; it never deletes history by itself."""


class WrongLastSequence(WorldFailure):
    """The append was refused: another event stands on the subject after the one that we had read."""

    def __init__(self, subject: str, expected: int) -> None:
        super().__init__(f"{subject}: the last sequence is no longer {expected}; another writer appended first")
        self.subject = subject
        self.expected = expected


class LeasesUnavailable(WorldFailure):
    """The lease servers could not be reached in time."""


class LeaseGone(WorldFailure):
    """The lease expired or was revoked; what hung on it is deleted. Nothing may be done in its name any more."""


class KeyTaken(WorldFailure):
    """A key that was to be created exists already; `holder` is its value."""

    def __init__(self, key: str, holder: bytes) -> None:
        super().__init__(f"{key} is held by another")
        self.key = key
        self.holder = holder


class IncompatibleServer(Misuse):
    """A server is too old, or holds a stream whose settings differ in what matters."""


class RequestRefused(HoldfastError):
    """An engine or the gateway refuses a request before its first token.

    `code` is OpenAI's error code (`context_length_exceeded`, ...), `param` the field at fault where there is one.
    """

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


class UnknownModel(Misuse):
    """No deployed application serves a model of this name."""

    def __init__(self, model: str) -> None:
        super().__init__(f"The model `{model}` does not exist or is not deployed here.")
        self.model = model


class Overloaded(WorldFailure):
    """The gateway's bounds are reached: rejected before any work was done. Try again after `retry_after_s`.

    `reason` is one of `holdfast.core.admission.Reason`, or empty where it is none of them. `model` is the deployed
    model that was asked for, empty where it was not looked for.
    """

    def __init__(self, message: str, retry_after_s: float, reason: str = "", model: str = "") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason = reason
        self.model = model


class GatewayStopping(Overloaded):
    """The gateway is drained or ends: another one can serve the request, or go on with it."""


class NoReplica(Overloaded):
    """The model is deployed, but no replica of it could take the stream within the time that it may wait."""


class DeadlineExceeded(WorldFailure):
    """The request did not end within its time; what it had got until then was delivered."""


class RequestCancelled(HoldfastError):
    """Somebody had the request ended at once: by its id, or with the request that it belongs to.

    `code` is the error's: `request_cancelled` or `parent_cancelled`.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class StreamLost(WorldFailure):
    """A stream lost its replica; where it reaches a client, more often than it may migrate."""

    def __init__(self, message: str, kind: str = "lost", retry_after_s: float | None = None) -> None:
        """`kind` is the metrics' word for the cause: `lost`, `silent`, `deaf`, `stuck` or `stalled`. A replica should
        be there again after `retry_after_s`, where that is known."""
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s
