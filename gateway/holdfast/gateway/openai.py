"""OpenAI's requests and responses as types: what is decoded, what is sent, and what `/openapi.json` says.

A field that OpenAI has and Holdfast can't honour is typed so that only the values without effect pass
(`UNSUPPORTED` names them); a field that has no effect on the answer is taken and ignored. Fields that neither
OpenAI nor vLLM's usual extras have are refused.
See https://platform.openai.com/docs/api-reference/chat and /completions.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
TOKENS_MAX: Final = 2**31 - 1
TOKEN_ID_MAX: Final = 2**32 - 1
TOOLS_MAX: Final = 128
"""OpenAI's limit."""
COMPLETION_TOKENS_DEFAULT: Final = 16
"""OpenAI's default of `max_tokens` for completions; a chat's default is what the context has room for."""

Tokens = Annotated[int, Meta(ge=1, le=TOKENS_MAX)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Empty = Annotated[list[Any], Meta(max_length=0)]
EmptyMap = Annotated[dict[str, Any], Meta(max_length=0)]
Never = Annotated[bool, Meta(extra_json_schema={"enum": [False]})]
Prompt = Annotated[
    str | list[Any],
    Meta(description="Text, several texts, token ids, or several lists of token ids."),
]
Stop = Annotated[
    str | list[Annotated[str, Meta(min_length=1)]],
    Meta(description="Text that ends the answer, and is not part of it."),
]

UNSUPPORTED: Final = frozenset(
    {
        "audio",
        "best_of",
        "function_call",
        "functions",
        "logit_bias",
        "modalities",
        "prediction",
        "reasoning_effort",
        "service_tier",
        "store",
        "suffix",
        "verbosity",
        "web_search_options",
    }
)


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`include_usage`: a last chunk with the token counts. `include_obfuscation` is taken and has no effect."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message. Only text."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Meta(min_length=1)]
Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class CalledFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function's name, and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call that the model made: in an answer, and in an assistant's message sent back."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class SystemMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="role", tag="system"
):
    """What the model should be."""

    content: Content
    name: str | None = None


class DeveloperMessage(SystemMessage, frozen=True, forbid_unknown_fields=True, tag="developer"):
    """The newer name of a system message; the model's template decides what it makes of it."""


class UserMessage(SystemMessage, frozen=True, forbid_unknown_fields=True, tag="user"):
    """What the user said."""


class AssistantMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="role", tag="assistant"
):
    """What the model said. The fields that are always null are those of an answer sent back as it came."""

    content: Content | None = None
    name: str | None = None
    refusal: None = None
    annotations: Empty | None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[ToolCall] | None = None


class ToolMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="role", tag="tool"
):
    """What a call gave."""

    content: Content
    tool_call_id: str


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A function. `parameters` is a JSON schema, none for no parameters; it is enforced, `strict` or not."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the functions in `tools`."""

    name: Name


class NamedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class TextFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    """A JSON object."""


class JsonSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON schema; none for any object. It is enforced, `strict` or not."""

    name: Name
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """JSON that a schema allows."""

    json_schema: JsonSchema


class Common(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What chats and completions share. `top_k`, `min_tokens` and `ignore_eos` are vLLM's extras."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=TOKENS_MAX)] | None = None
    ignore_eos: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=TOKENS_MAX)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    seed: Annotated[int, Meta(ge=INT64_MIN, le=INT64_MAX)] | None = None
    stop: Stop | None = None
    user: str | None = None
    logit_bias: EmptyMap | None = None


class ChatRequest(Common, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Tool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: Empty | None = None
    function_call: Literal["none"] | None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Never | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None


class CompletionRequest(Common, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/completions`."""

    prompt: Prompt
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=1)] | None = None
    suffix: Annotated[str, Meta(max_length=0)] | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of the prompts, of all answers, and of both."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(msgspec.Struct, frozen=True):
    """A token that might have been drawn."""

    token: str
    logprob: float
    bytes: list[int]


class TokenInfo(msgspec.Struct, frozen=True):
    """A token that was drawn, and the most likely ones at its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """The log probabilities of a chat's tokens."""

    content: list[TokenInfo]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """The log probabilities of a completion's tokens. `text_offset` counts characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class AnswerMessage(msgspec.Struct, frozen=True):
    """What the model said, in text or in calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One of a chat's `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(msgspec.Struct, frozen=True):
    """The answer to a chat request that is not streamed."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(msgspec.Struct, frozen=True):
    """One of a completion's answers; choice `p * n + i` is the i-th for prompt p."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str


class Completion(msgspec.Struct, frozen=True):
    """The answer to a completions request that is not streamed."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Model(msgspec.Struct, frozen=True):
    """A deployed model. `max_model_len` is its context in tokens, null until a replica has told it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    replicas_running: int
    replicas_wanted: int


class ModelList(msgspec.Struct, frozen=True):
    """All deployed models."""

    object: Literal["list"]
    data: list[Model]


class HealthReport(msgspec.Struct, frozen=True):
    """Whether this gateway can serve every application, and why not; `state` is as in `holdfast status`."""

    status: Literal["healthy", "unhealthy"]
    state: Literal["STARTING", "HEALTHY", "UNHEALTHY", "DRAINING", "DRAINED"]
    gateway: str
    reasons: list[str]
    details: dict[str, Any]
