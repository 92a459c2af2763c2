"""What was delivered, so that nothing is delivered twice and nothing of another answer is taken for this one.

Ids are opaque, and a gateway goes on behind the token whose id it is sent. What it can't know is which of the events
that bring no token (a role, a choice's end, the usage) reached the client after that token: it may send them again.
Those are known by what they are: a choice begins once and ends once, and the usage comes once.
An event under the very id that was resumed from is also compared by content: two tokens may be alike, but each has an
id of its own.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from holdfast.gateway.client.errors import CannotResume
from holdfast.gateway.client.events import Event

SAME_ID_EVENTS_MAX: Final = 1024
"""More than the events that bring no token in an answer of 128 choices (a role and an end each, and the usage)."""


class Ledger:
    """One call's deliveries. `last_id` is where to resume; "" if nothing was delivered, or the server gives no ids."""

    def __init__(self, last_id: str) -> None:
        self.last_id = last_id
        self.delivered = bool(last_id)
        self._response_id: object = None
        self._resumed = False
        self._same_id: deque[tuple[Any, Any]] = deque(maxlen=SAME_ID_EVENTS_MAX)
        self._once: set[tuple[str, int]] = set()

    def resuming(self) -> None:
        """The next events are another try's."""
        self._resumed = True

    def take(self, event: Event) -> bool:
        """Whether this event is to be delivered. Raises `CannotResume` if it belongs to another answer."""
        response_id = event.data.get("id")
        if self._response_id is not None and response_id != self._response_id:
            raise CannotResume("the server began another answer instead of resuming this one")
        self._response_id = response_id
        content = (event.data.get("choices"), event.data.get("usage"))
        marks = _marks(event.data)
        if self._resumed and (self._repeated(event.id, content) or (marks and marks <= self._once)):
            return False
        if event.id != self.last_id:
            self._same_id.clear()
        if event.id:
            self._same_id.append(content)
        self._once |= marks
        self.last_id = event.id
        self.delivered = True
        return True

    def _repeated(self, event_id: str, content: tuple[Any, Any]) -> bool:
        return event_id != "" and event_id == self.last_id and content in self._same_id


def _choices(data: dict[str, Any]) -> list[dict[str, Any]]:
    choices = data.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _marks(data: dict[str, Any]) -> set[tuple[str, int]]:
    """What this event brings that comes only once."""
    marks: set[tuple[str, int]] = set()
    choices = _choices(data)
    for choice in choices:
        delta, index = choice.get("delta"), choice.get("index")
        if not isinstance(index, int):
            continue
        if choice.get("finish_reason") is not None:
            marks.add(("end", index))
        elif isinstance(delta, dict) and delta.get("role") and not delta.get("content"):
            marks.add(("role", index))
    if not choices and data.get("usage"):
        marks.add(("usage", 0))
    return marks
