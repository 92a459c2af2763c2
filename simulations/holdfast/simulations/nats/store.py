"""What a simulated JetStream server keeps of a stream, and what it answers to an append.

The rules and their order are those of nats-server 2.15, tried on one: a single server looks at the expected sequence
first and then at the message id, a group of three the other way round, and also at what is under way.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any

import msgspec

NANOSECONDS = 1_000_000_000
MESSAGE_ID_HEADER = "Nats-Msg-Id"
EXPECTED_HEADER = "Nats-Expected-Last-Subject-Sequence"
OVERHEAD_BYTES = 30
HEADERS_OVERHEAD_BYTES = 4


class Refusal(msgspec.Struct, frozen=True):
    """An error as the server answers it: status, error code and text of nats-server's `errors.json`."""

    status: int
    code: int
    text: str

    def answer(self, kind: str = "") -> dict[str, Any]:
        """The answer that tells of it, to a request of the API."""
        named = {"type": f"io.nats.jetstream.api.v1.{kind}_response"} if kind else {}
        return named | {"error": {"code": self.status, "err_code": self.code, "description": self.text}}


UNAVAILABLE = Refusal(503, 10008, "JetStream system temporarily unavailable")
CONSUMER_NOT_FOUND = Refusal(404, 10014, "consumer not found")
NO_MESSAGE_FOUND = Refusal(404, 10037, "no message found")
TOO_LARGE = Refusal(400, 10054, "message size exceeds maximum allowed")
NAME_IN_USE = Refusal(400, 10058, "stream name already in use with a different configuration")
STREAM_NOT_FOUND = Refusal(404, 10059, "stream not found")
SUBJECTS_OVERLAP = Refusal(400, 10065, "subjects overlap with an existing stream")
NOT_CLUSTERED = Refusal(500, 10074, "replicas > 1 not supported in non-clustered mode")
TOO_FEW_PEERS = Refusal(400, 10005, "no suitable peers for placement")
FULL = Refusal(503, 10077, "maximum bytes exceeded")
STORE_CLOSED = Refusal(503, 10077, "store is closed")
IN_PROCESS = Refusal(409, 10158, "duplicate message id is in process")
IN_FLIGHT = Refusal(400, 10164, "wrong last sequence")


def wrong_last_sequence(last: int) -> Refusal:
    return Refusal(400, 10071, f"wrong last sequence: {last}")


class Append(msgspec.Struct, gc=False):
    """A message that is to be appended, as it came."""

    subject: str
    data: bytes
    headers: dict[str, str]
    message_id: str
    expected: int | None

    @property
    def size(self) -> int:
        """Bytes that it takes on disk."""
        headers = sum(len(name) + len(value) + 4 for name, value in self.headers.items())
        return OVERHEAD_BYTES + HEADERS_OVERHEAD_BYTES + len(self.subject) + headers + len(self.data)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A message of the stream. `at_s` is the true time at which it was stored."""

    sequence: int
    subject: str
    data: bytes
    headers: dict[str, str]
    message_id: str
    at_s: float
    size: int


def append_of(subject: str, data: bytes, headers: dict[str, str]) -> Append:
    """A publication as an append."""
    expected = headers.get(EXPECTED_HEADER)
    return Append(
        subject, data, headers, headers.get(MESSAGE_ID_HEADER, ""), None if expected is None else int(expected)
    )


class Stream:
    """A stream's entries, by sequence and by subject. `held` are those under way in a group, not stored yet."""

    def __init__(self, config: dict[str, Any], created_s: float) -> None:
        self.config = config
        self.created_s = created_s
        self.first = 1
        self.last = 0
        self.bytes = 0
        self.count = 0
        self._entries: list[Entry | None] = []
        self._sequences: dict[str, list[int]] = {}
        self._ids: dict[str, tuple[int, float]] = {}

    @property
    def name(self) -> str:
        return str(self.config["name"])

    def takes(self, subject: str) -> bool:
        """Whether messages on the subject belong to this stream."""
        return any(
            subject == pattern or (pattern.endswith(">") and subject.startswith(pattern[:-1]))
            for pattern in self.config["subjects"]
        )

    def overlaps(self, patterns: list[str]) -> bool:
        """Whether another stream can't have these subjects beside this one."""
        return any(
            self.takes(pattern.removesuffix(">") + "x" if pattern.endswith(">") else pattern) for pattern in patterns
        )

    # --- reading ----------------------------------------------------------------------------------------

    def get(self, sequence: int) -> Entry | None:
        index = sequence - self.first
        return self._entries[index] if 0 <= index < len(self._entries) else None

    def last_on(self, subject: str, up_to: int) -> Entry | None:
        """The last entry on a subject, of those up to a sequence."""
        sequences = self._sequences.get(subject, [])
        at = bisect_right(sequences, up_to)
        return self.get(sequences[at - 1]) if at else None

    def next_on(self, subject: str, sequence: int, up_to: int) -> Entry | None:
        """The first entry on a subject from a sequence on."""
        sequences = self._sequences.get(subject, [])
        at = bisect_left(sequences, sequence)
        return self.get(sequences[at]) if at < len(sequences) and sequences[at] <= up_to else None

    def duplicate_of(self, message_id: str, now_s: float, up_to: int) -> int | None:
        """The sequence, of those up to one, under which the message id is remembered."""
        known = self._ids.get(message_id)
        if (
            known is None
            or known[0] > up_to
            or (now_s - known[1]) * NANOSECONDS > self.config.get("duplicate_window", 0)
        ):
            return None
        return known[0]

    def subjects_number(self) -> int:
        return sum(1 for sequences in self._sequences.values() if sequences)

    # --- appending --------------------------------------------------------------------------------------

    def refusal(self, append: Append, up_to: int) -> Refusal | None:
        """Why the append can't be, for all that is known up to a sequence; not for its message id."""
        if 0 <= self.config.get("max_msg_size", -1) < len(append.data):
            return TOO_LARGE
        if append.expected is not None:
            before = self.last_on(append.subject, up_to)
            last = before.sequence if before is not None else 0
            if last != append.expected:
                return wrong_last_sequence(last)
        if 0 <= self.config["max_bytes"] < self.bytes + append.size:
            return FULL
        return None

    def store(self, append: Append, now_s: float) -> Entry:
        """Put it at the end."""
        self.last += 1
        entry = Entry(self.last, append.subject, append.data, append.headers, append.message_id, now_s, append.size)
        self._entries.append(entry)
        self._sequences.setdefault(entry.subject, []).append(entry.sequence)
        if entry.message_id:
            self._ids[entry.message_id] = (entry.sequence, now_s)
        self.bytes += entry.size
        self.count += 1
        return entry

    # --- losing -----------------------------------------------------------------------------------------

    def truncate(self, after: int) -> None:
        """Lose the entries above a sequence, as if they had never been."""
        while self.last > after and self._entries:
            self._drop(len(self._entries) - 1)
            self._entries.pop()
            self.last -= 1

    def purge(self, below: int | None, subject: str | None) -> int:
        """Drop the entries below a sequence, or those on a subject; how many."""
        before = self.count
        for index, entry in enumerate(self._entries):
            if entry is not None and (below is None or entry.sequence < below) and subject in (None, entry.subject):
                self._drop(index)
        while self._entries and self._entries[0] is None:
            self._entries.pop(0)
            self.first += 1
        return before - self.count

    def _drop(self, index: int) -> None:
        entry = self._entries[index]
        if entry is None:
            return
        self._entries[index] = None
        self._sequences[entry.subject].remove(entry.sequence)
        known = self._ids.get(entry.message_id)
        if known is not None and known[0] == entry.sequence:
            del self._ids[entry.message_id]
        self.bytes -= entry.size
        self.count -= 1
