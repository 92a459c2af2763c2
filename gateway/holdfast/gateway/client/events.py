"""What users get: events and whole answers, as parsed JSON, with the text at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a stream. `id` is where the stream can be resumed behind this event."""

    id: str
    data: dict[str, Any]

    @property
    def text(self) -> str:
        """The first choice's text in this event; "" where it has none."""
        return text_of(self.data)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was not streamed. `tries` says how often the request was sent."""

    data: dict[str, Any]
    request_id: str
    tries: int

    @property
    def text(self) -> str:
        """The first choice's text."""
        return text_of(self.data)


def text_of(data: Mapping[str, Any], choice: int = 0) -> str:
    """The text of one choice in an event or an answer, of a chat or a completion; "" where it has none."""
    choices = data.get("choices")
    for found in choices if isinstance(choices, list) else ():
        if isinstance(found, dict) and found.get("index", 0) == choice:
            holder = found.get("delta") or found.get("message") or found
            text = holder.get("content", holder.get("text")) if isinstance(holder, dict) else None
            return text if isinstance(text, str) else ""
    return ""
