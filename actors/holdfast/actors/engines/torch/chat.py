"""A model's chat template: chat messages to the text that the model was trained on.

The template comes with the model, in Jinja. It gets what `transformers.apply_chat_template` would give it, so
that the same messages become the same text (https://huggingface.co/docs/transformers/chat_templating).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from holdfast.actors.engines.torch.chat_tools import ToolTemplate
from holdfast.core.errors import InvalidConfig, RequestRefused
from holdfast.core.requests import Message, ToolUse

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class ChatTemplate:
    """The compiled template of a model directory, if it has one.

    `now` is what `strftime_now` in a template reads. A template which calls that renders differently another
    day, so a stream resumed after midnight may see another prompt than the first attempt did.
    """

    def __init__(self, directory: Path, now: Callable[[], datetime] = datetime.now) -> None:
        """Raises `InvalidConfig` when a file is broken or the template is no Jinja."""
        settings = _read_json(directory / "tokenizer_config.json")
        names = {**_read_json(directory / "special_tokens_map.json"), **settings}
        self._variables = {name: _token_text(names.get(name)) for name in _SPECIAL_TOKENS}
        source = _template_source(directory, settings)
        self._tools = ToolTemplate(source or "", settings, str(directory))
        try:
            self._template = None if source is None else _environment(now).from_string(source)
        except jinja2.TemplateError as error:
            raise InvalidConfig(f"{directory}: the chat template can't be compiled: {error}") from error

    @property
    def writes_calls(self) -> bool:
        """Whether the model calls tools of its own accord, in the format that Holdfast reads."""
        return self._tools.writes_calls

    def render(self, messages: Sequence[Message], tools: ToolUse | None = None) -> str:
        """The prompt, up to where the assistant's answer begins.

        Raises `RequestRefused`: `no_chat_template`, `unsupported_content` for anything but text,
        `unsupported_value` for tools of which the template knows nothing, and `invalid_messages` for what the
        template itself refuses.
        """
        if self._template is None:
            raise RequestRefused(
                "This model has no chat template; use /v1/completions.",
                code="no_chat_template",
                param="messages",
            )
        if tools is not None and not tools.forced and not self.writes_calls:
            raise RequestRefused(
                "Unsupported: 'tools' can't be left to the model to call: its chat template has no tool calls that "
                "Holdfast reads. Set 'tool_choice' to 'required' or to a function.",
                code="unsupported_value",
                param="tools",
            )
        plain = [self._tools.message(_plain_message(message)) for message in messages]
        if not plain:
            raise _invalid("messages must not be empty")
        variables: dict[str, Any] = dict(self._variables)
        if tools is not None:
            variables["tools"] = [{"type": "function", "function": function} for function in tools.functions]
        try:
            return self._template.render(messages=plain, add_generation_prompt=True, **variables)
        except Exception as error:  # a template is a program: there is nothing that it may not raise
            raise _invalid(f"the model's chat template refuses these messages: {error}") from error


class _Generation(Extension):
    """Lets `{% generation %}` through: it marks the assistant's part for training and prints nothing."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's way to declare it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )

    def strftime_now(format: str) -> str:
        return now().strftime(format)

    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Jinja's own escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _plain_message(message: Message) -> Message:
    """The message with its content as one text; several parts become lines, as in vLLM."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise _invalid("every message must be an object with a role")
    content = message.get("content")
    if content is None:
        return {**message, "content": ""}
    if isinstance(content, str):
        return message
    if not isinstance(content, list):
        raise _invalid("a message's content must be text or a list of text parts")
    return {**message, "content": "\n".join(_part_text(part) for part in content)}


def _part_text(part: object) -> str:
    if not isinstance(part, Mapping):
        raise _invalid("a content part must be an object")
    if part.get("type") != "text":
        raise RequestRefused(
            f"This model takes text only; a content part has type {part.get('type')!r}.",
            code="unsupported_content",
            param="messages",
        )
    if not isinstance(part.get("text"), str):
        raise _invalid("a text part must have a text")
    return str(part["text"])


def _invalid(text: str) -> RequestRefused:
    return RequestRefused(f"Invalid messages: {text}.", code="invalid_messages", param="messages")


def _template_source(directory: Path, settings: Mapping[str, Any]) -> str | None:
    """A file of its own has precedence; of several named templates the one called default counts."""
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template if isinstance(template, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidConfig(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise InvalidConfig(f"{path}: an object was expected")
    return content


def _token_text(token: object) -> str:
    """A special token is written as its text or as an object with a `content`."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else ""
