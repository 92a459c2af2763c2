"""What a gateway asks of an engine, and what the engine answers. Part of the wire: change with care."""

from __future__ import annotations

from typing import Any, Final

import msgspec

Message = dict[str, Any]
"""One chat message as the client sent it: `role`, `content` (text, or a list of text parts), `name`; an
assistant's may have `tool_calls`, a tool's has `tool_call_id`."""

CALL_MARKER: Final = "<tool_call>"
CALL_HEAD: Final = '\n{"name": "'
CALL_MIDDLE: Final = '", "arguments": '
CALL_END: Final = "}\n</tool_call>"
CALL_SEPARATOR: Final = "\n"
"""How a tool call stands in a model's text: marker, head, the function's name, middle, the arguments as JSON, end.

It is the format of Hermes and Qwen. The arguments hold no line feed (JSON strings escape it, and engines allow
none between values), so the end can't occur in them.
"""

FEATURE_JSON_SCHEMA: Final = "json_schema"
FEATURE_TOOLS_FORCED: Final = "tools_forced"
FEATURE_TOOLS: Final = "tools"
"""What an engine may be able to do beyond text: output constrained by a schema, calls that a request demands,
and calls that the model makes of its own accord."""


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How tokens are drawn. Ranges as in OpenAI's API; `top_k` 0 and `top_p` 1 mean no limit.

    `seed` keys the counter-based generator (`holdfast.core.sampling`): the draw for a position depends on
    (seed, position) only, so that a resumed stream draws what the first would have drawn.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


class Grammar(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the whole output must be: JSON that the schema allows. `schema` is JSON text.

    What is generated is a function of the model, the request and the tokens so far, so a stream that is resumed
    after `accepted` tokens goes on as it would have. Logprobs stay those of the model's own distribution.
    """

    schema: str


class ToolUse(msgspec.Struct, frozen=True, omit_defaults=True):
    """Functions that the model may call, or must (`forced`): one, or several where `parallel`.

    `functions` are OpenAI's function objects (`name`, `description`, `parameters`). `names` are those that may be
    called; empty means all of them. Calls stand in the text as `CALL_MARKER` and the rest describe.
    """

    functions: list[dict[str, Any]]
    names: list[str] = msgspec.field(default_factory=list)
    forced: bool = False
    parallel: bool = True


class EngineRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One stream's work. Exactly one of `messages`, `prompt`, `prompt_tokens` is set.

    `accepted` are token ids that an earlier attempt delivered: the engine goes on after them, at position
    `len(accepted)`. `max_tokens` counts them too; 0 means as many as the context has room for.
    `ignore_eos` keeps generating past an end-of-sequence token. `logprobs` is how many alternatives to report
    for each token; -1 for none at all. At most one of `grammar` and `tools` is set; an engine that can't honour
    it refuses the request (`unsupported_value`).
    """

    messages: list[Message] | None = None
    prompt: str | None = None
    prompt_tokens: list[int] | None = None
    accepted: list[int] = msgspec.field(default_factory=list)
    max_tokens: int = 0
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int = -1
    sampling: Sampling = Sampling()
    grammar: Grammar | None = None
    tools: ToolUse | None = None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The log probability of a chosen token, and the most likely alternatives as (token id, text, logprob).

    `text` is the token's own text as bytes (a token may be part of a character).
    """

    logprob: float
    text: bytes
    top: list[tuple[int, bytes, float]]


class EngineInfo(msgspec.Struct, frozen=True):
    """What an engine serves. `deterministic`: the same request and seed always give the same tokens.

    `features` are the `FEATURE_...` that it has.
    """

    model: str
    context_tokens_max: int
    kv_blocks: int
    streams_max: int
    deterministic: bool
    device: str
    features: list[str] = msgspec.field(default_factory=list)


class EngineLoad(msgspec.Struct, frozen=True, array_like=True):
    """What an engine is busy with. `step` counts up with every step that the engine did.

    `prefill_tokens_waiting`: tokens of prompts that were taken in and not yet read into the KV cache.
    """

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks: int
    step: int
    prefill_tokens_waiting: int = 0
