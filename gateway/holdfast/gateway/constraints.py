"""What a chat request asks of the answer's form: JSON by a schema, or calls of functions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast.core.requests import EngineRequest, Grammar, ToolUse
from holdfast.gateway.openai import (
    AssistantMessage,
    ChatMessage,
    ChatRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
    Tool,
)
from holdfast.gateway.problems import invalid, unsupported

_ANY_OBJECT = Grammar('{"type":"object"}')


def constrained(first: EngineRequest, request: ChatRequest) -> EngineRequest:
    """The engine's request with the form that the answer must have. Raises `RequestRefused`."""
    grammar, tools = _grammar(request), _tools(request)
    if grammar is None and tools is None:
        return first
    if request.ignore_eos:
        field = "tools" if grammar is None else "response_format"
        raise invalid(
            f"'ignore_eos' can't be combined with '{field}': the text ends where its form does.", "ignore_eos"
        )
    if tools is not None:
        if grammar is not None:
            raise unsupported("response_format", "can't be JSON where the model may call tools.")
        if request.logprobs:
            raise unsupported("logprobs", "can't be true where the model may call tools.")
    return msgspec.structs.replace(first, grammar=grammar, tools=tools)


def check_messages(messages: Sequence[ChatMessage]) -> None:
    """Raises `RequestRefused` for an assistant's message that says nothing and calls nothing."""
    for index, message in enumerate(messages):
        if type(message) is AssistantMessage and message.content is None and not message.tool_calls:
            path = f"messages[{index}].content"
            raise invalid(f"Invalid value for '{path}': it may be null only beside 'tool_calls'.", path, "invalid_type")


def _grammar(request: ChatRequest) -> Grammar | None:
    match request.response_format:
        case JsonObjectFormat():
            return _ANY_OBJECT
        case JsonSchemaFormat(json_schema):
            if json_schema.schema is None:
                return _ANY_OBJECT
            return Grammar(msgspec.json.encode(json_schema.schema).decode())
    return None


def _tools(request: ChatRequest) -> ToolUse | None:
    choice = request.tool_choice
    if not request.tools:
        if choice is not None and choice != "none":
            raise invalid("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
        return None
    names = _names(request.tools)
    if choice == "none":
        return None
    functions = [msgspec.to_builtins(tool.function) for tool in request.tools]
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in names:
            raise invalid(f"'tool_choice' names '{name}', which is not among the 'tools'.", "tool_choice.function.name")
        return ToolUse(functions, [name], forced=True, parallel=False)
    parallel = request.parallel_tool_calls is not False
    return ToolUse(functions, forced=choice == "required", parallel=parallel)


def _names(tools: Sequence[Tool]) -> set[str]:
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.function.name in names:
            path = f"tools[{index}].function.name"
            raise invalid(f"Invalid value for '{path}': another function has this name.", path)
        names.add(tool.function.name)
    return names
