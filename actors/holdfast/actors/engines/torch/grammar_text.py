"""What a request's output must look like, as a grammar of llguidance's.

Between JSON's values there may be one space after a comma or a colon and nothing else: a model that may write
white space wherever JSON allows it can write nothing else for ever.
See https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md and docs/json_schema.md.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from holdfast.core.errors import RequestRefused
from holdfast.core.requests import (
    CALL_END,
    CALL_HEAD,
    CALL_MARKER,
    CALL_MIDDLE,
    CALL_SEPARATOR,
    EngineRequest,
    Grammar,
    ToolUse,
)

GRAMMAR_BYTES_MAX: Final = 64 * 1024
"""The longest grammar, schemas included, in bytes of UTF-8."""

_OPTIONS: Final = {
    "item_separator": ", ?",
    "key_separator": ": ?",
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "coerce_one_of": False,
    "lenient": False,
    "json_allow_general_unicode_escapes": False,
}
"""All of them, so that a schema can't bring its own: what can't be enforced is refused, and no half surrogate
pair can be written."""

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NO_ARGUMENTS: Final = {"type": "object", "properties": {}, "additionalProperties": False}


def grammar_of(request: EngineRequest) -> str | None:
    """The request's grammar, or None where any text will do. Raises `RequestRefused`."""
    if request.grammar is None and request.tools is None:
        return None
    if request.grammar is not None and request.tools is not None:
        raise invalid_schema("it can't be combined with tools", request)
    try:
        if request.grammar is not None:
            text = _grammars(json_schema=_schema(request.grammar))
        else:
            assert request.tools is not None
            text = _grammars(lark_grammar=_calls(request.tools))
    except ValueError as error:
        raise invalid_schema(str(error), request) from error
    except RecursionError as error:
        raise invalid_schema("it is nested too deeply", request) from error
    length = len(text.encode("utf-8", "replace"))
    if length > GRAMMAR_BYTES_MAX:
        raise invalid_schema(f"it has {length} bytes, more than {GRAMMAR_BYTES_MAX}", request)
    return text


def param_of(request: EngineRequest) -> str:
    """The field that asks for the grammar."""
    return "response_format" if request.grammar is not None else "tools"


def invalid_schema(why: str, request: EngineRequest) -> RequestRefused:
    """A refusal for a schema that is none, or that can't be enforced."""
    param = param_of(request)
    return RequestRefused(f"Invalid schema for {param}: {why}.", code="invalid_json_schema", param=param)


def _grammars(**grammar: object) -> str:
    return json.dumps({"grammars": [grammar]}, ensure_ascii=False)


def _schema(grammar: Grammar) -> dict[str, Any]:
    if len(grammar.schema) > GRAMMAR_BYTES_MAX:
        raise ValueError(f"it has {len(grammar.schema)} characters; {GRAMMAR_BYTES_MAX} bytes are the most")
    schema = json.loads(grammar.schema)
    if not isinstance(schema, dict):
        raise ValueError("a schema must be an object")
    return {**schema, "x-guidance": _OPTIONS}


def _calls(tools: ToolUse) -> str:
    """Calls alone where they are forced; else text, and nothing but calls from the first marker on."""
    functions = [function for function in tools.functions if not tools.names or function.get("name") in tools.names]
    if not functions:
        raise ValueError("there is no function to call")
    lines = ["%llguidance {}"]
    more = f" ({_quoted(CALL_SEPARATOR + CALL_MARKER)} call)*" if tools.parallel else ""
    if tools.forced:
        lines.append(f"start: {_quoted(CALL_MARKER)} call{more}")
    else:
        lines.append(f"start: TEXT | head call{more}")
        lines.append(f"head[lazy]: TEXT {_quoted(CALL_MARKER)}")
        lines.append(r"TEXT: /(.|\n)*/")
    lines.append("call: " + " | ".join(f"call_{n}" for n in range(len(functions))))
    for n, function in enumerate(functions):
        name, schema = _function(function)
        begin, end = _quoted(CALL_HEAD + name + CALL_MIDDLE), _quoted(CALL_END)
        lines.append(f"call_{n}: {begin} arguments_{n} {end}")
        lines.append(f"arguments_{n}: %json {json.dumps(schema, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _function(function: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name, and the schema of its arguments: always an object."""
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a function")
    if parameters is None:
        parameters = _NO_ARGUMENTS
    if not isinstance(parameters, dict):
        raise ValueError(f"the parameters of {name!r} must be an object")
    return name, {"type": "object", **parameters, "x-guidance": _OPTIONS}


def _quoted(text: str) -> str:
    return json.dumps(text)
