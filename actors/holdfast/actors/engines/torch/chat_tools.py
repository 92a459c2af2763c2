"""What a model's chat template knows of tools.

A model writes calls in the format that it was trained on, and only its template shows which. Holdfast reads one
format, that of Hermes and Qwen (`requests.CALL_MARKER`). A template has it if it lists `tools`, writes
`<tool_call>` and shows a call as an object with `"arguments"`. Where that guess is wrong, `tokenizer_config.json`
can say it: `"holdfast": {"tool_format": "hermes"}`, or `"none"`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from holdfast.core.errors import InvalidConfig, RequestRefused
from holdfast.core.requests import CALL_MARKER, Message

HERMES: Final = "hermes"
NONE: Final = "none"
_ARGUMENTS: Final = re.compile(r"""arguments\\*["']""")
_TOOLS: Final = re.compile(r"\btools\b")
_TOOL_ROLE: Final = re.compile(r"""["']tool["']""")


class ToolTemplate:
    """What the template with this source knows. `writes_calls`: calls in the format that Holdfast reads."""

    def __init__(self, source: str, settings: Mapping[str, Any], where: str) -> None:
        """Raises `InvalidConfig` when the settings declare a format that there is none of."""
        self.writes_calls = _declared(settings, where, guess=_is_hermes(source))
        self._knows_calls = "tool_calls" in source
        self._knows_results = _TOOL_ROLE.search(source) is not None

    def message(self, message: Message) -> Message:
        """The message as templates expect it: a call's arguments as an object, not as text.

        Raises `RequestRefused` for a call or a tool's message that the template would leave out or garble.
        """
        if message.get("role") == "tool" and not self._knows_results:
            raise _unknown("messages of the role 'tool'")
        calls = message.get("tool_calls")
        if not calls:
            return message
        if not self._knows_calls:
            raise _unknown("'tool_calls'")
        return {**message, "tool_calls": [_call(call) for call in calls]}


def _declared(settings: Mapping[str, Any], where: str, *, guess: bool) -> bool:
    ours = settings.get("holdfast")
    declared = ours.get("tool_format") if isinstance(ours, Mapping) else None
    if declared is None:
        return guess
    if declared not in (HERMES, NONE):
        raise InvalidConfig(f"{where}: holdfast.tool_format is {declared!r}; known are {HERMES!r} and {NONE!r}")
    return bool(declared == HERMES)


def _is_hermes(source: str) -> bool:
    """Others write `<tool_call>` too, and a function's parameters as tags inside it (Qwen3-Coder)."""
    listed = _TOOLS.search(source) is not None and CALL_MARKER in source
    return listed and _ARGUMENTS.search(source) is not None and "<function=" not in source


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise _invalid("a tool call must have a function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise _invalid(f"a tool call's arguments are no JSON: {error}") from error
    return {**call, "function": {**function, "arguments": arguments}}


def _invalid(text: str) -> RequestRefused:
    return RequestRefused(f"Invalid messages: {text}.", code="invalid_messages", param="messages")


def _unknown(what: str) -> RequestRefused:
    message = f"Unsupported: 'messages' can't have {what}: this model's chat template knows none."
    return RequestRefused(message, code="unsupported_value", param="messages")
