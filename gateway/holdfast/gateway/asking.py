"""From a request's body to what is asked of the engines.

msgspec decodes and checks the body against the types in `openai.py` in one pass; its errors are put into
OpenAI's words here. What a type can't say (fields that exclude each other, limits that are settings) is
checked by hand afterwards.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import msgspec

from holdfast.core.errors import RequestRefused
from holdfast.core.requests import EngineRequest, Sampling
from holdfast.core.sampling import derive
from holdfast.gateway.constraints import check_messages, constrained
from holdfast.gateway.http_settings import HttpSettings
from holdfast.gateway.machine import Entropy
from holdfast.gateway.openai import (
    COMPLETION_TOKENS_DEFAULT,
    TOKEN_ID_MAX,
    UNSUPPORTED,
    ChatRequest,
    Common,
    CompletionRequest,
)
from holdfast.gateway.problems import invalid, unsupported

Ids = Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=TOKEN_ID_MAX)]], msgspec.Meta(min_length=1)]
Request = TypeVar("Request", ChatRequest, CompletionRequest)

_chat = msgspec.json.Decoder(ChatRequest)
_completion = msgspec.json.Decoder(CompletionRequest)
_AT: Final = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING: Final = re.compile(r"^Object missing required field `(?P<field>.*)`$", re.DOTALL)
_UNKNOWN: Final = re.compile(r"^Object contains unknown field `(?P<field>.*)`$", re.DOTALL)
_TOP: Final = re.compile(r"[^.\[]*")


@dataclass(slots=True)
class Asked:
    """A request, checked and translated: `prompts` groups of equally many `choices`, run as one session.

    `echo` is the text that goes before each prompt's answers, if any. `seed` is the first choice's.
    `logprobs` is as in `EngineRequest`. `calls`: the answers may hold tool calls.
    """

    model: str
    choices: list[EngineRequest]
    stops: list[str]
    seed: int
    stream: bool
    include_usage: bool
    logprobs: int
    prompts: int = 1
    echo: list[str] | None = None
    calls: bool = False


def ask_chat(body: bytes, settings: HttpSettings, entropy: Entropy = os.urandom) -> Asked:
    """What a chat request asks for. Raises `RequestRefused` naming the field at fault."""
    request = _decode(_chat, body)
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise invalid("Set either 'max_tokens' or 'max_completion_tokens', not both.", "max_completion_tokens")
    if request.store:
        raise unsupported("store", "can't be true: answers are not kept.")
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    logprobs = (request.top_logprobs or 0) if request.logprobs else -1
    limit = request.max_tokens or request.max_completion_tokens or 0
    messages = msgspec.to_builtins(request.messages)
    first = _engine_request(request, limit, logprobs, entropy, messages=messages)
    if request.tools or request.tool_choice or request.response_format is not None:
        first = constrained(first, request)
    check_messages(request.messages)
    asked = _asked(request, [first], logprobs, settings)
    asked.calls = first.tools is not None
    return asked


def ask_completion(body: bytes, settings: HttpSettings, entropy: Entropy = os.urandom) -> Asked:
    """What a completions request asks for. Raises `RequestRefused` naming the field at fault."""
    request = _decode(_completion, body)
    logprobs = -1 if request.logprobs is None else request.logprobs
    limit = request.max_tokens or COMPLETION_TOKENS_DEFAULT
    prompts = _prompts(request.prompt)
    echo = _echo(request, prompts) if request.echo else None
    first = _engine_request(request, limit, logprobs, entropy)
    firsts = [msgspec.structs.replace(first, **prompt) for prompt in prompts]
    return _asked(request, firsts, logprobs, settings, echo)


def _asked(
    request: Common, firsts: list[EngineRequest], logprobs: int, settings: HttpSettings, echo: list[str] | None = None
) -> Asked:
    n = request.n or 1
    if n > settings.n_max:
        raise invalid(f"Invalid 'n': expected at most {settings.n_max}, got {n}.", "n", "integer_above_max_value")
    if n * len(firsts) > settings.choices_max:
        message = f"Too many choices: {len(firsts)} prompts times n={n} is more than {settings.choices_max}."
        raise invalid(message, "prompt" if n == 1 else "n", "too_many_choices")
    if request.stream_options is not None and not request.stream:
        raise invalid("'stream_options' is only allowed when 'stream' is true.", "stream_options")
    choices = firsts if n == 1 else [_with_seed(first, i) for first in firsts for i in range(n)]
    return Asked(
        model=request.model,
        choices=choices,
        stops=_stops(request.stop, settings),
        seed=firsts[0].sampling.seed,
        stream=bool(request.stream),
        include_usage=request.stream_options is not None and bool(request.stream_options.include_usage),
        logprobs=logprobs,
        prompts=len(firsts),
        echo=echo,
    )


def _engine_request(
    request: Common,
    max_tokens: int,
    logprobs: int,
    entropy: Entropy,
    messages: list[dict[str, Any]] | None = None,
) -> EngineRequest:
    min_tokens = request.min_tokens or 0
    if max_tokens and min_tokens > max_tokens:
        raise invalid(f"'min_tokens' ({min_tokens}) is more than the {max_tokens} allowed.", "min_tokens")
    return EngineRequest(
        messages=messages,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
        sampling=Sampling(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            top_k=max(request.top_k or 0, 0),
            seed=_draw_seed(entropy) if request.seed is None else request.seed,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
        ),
    )


def _draw_seed(entropy: Entropy) -> int:
    """63 random bits, so that a seed fits wherever a signed 64-bit integer does."""
    return int.from_bytes(entropy(8), "big") >> 1


def _with_seed(first: EngineRequest, n: int) -> EngineRequest:
    if n == 0:
        return first
    sampling = msgspec.structs.replace(first.sampling, seed=derive(first.sampling.seed, n))
    return msgspec.structs.replace(first, sampling=sampling)


def _prompts(prompt: str | list[Any]) -> list[dict[str, Any]]:
    """Each prompt as the field of `EngineRequest` that takes it."""
    if isinstance(prompt, str):
        return [{"prompt": prompt}]
    if not prompt:
        raise invalid("Invalid 'prompt': empty array.", "prompt", "empty_array")
    if isinstance(prompt[0], str):
        return [{"prompt": text} for text in _convert(prompt, list[str])]
    if isinstance(prompt[0], list):
        return [{"prompt_tokens": ids} for ids in _convert(prompt, list[Ids])]
    return [{"prompt_tokens": _convert(prompt, Ids)}]


def _convert(prompt: list[Any], type_: Any) -> list[Any]:
    try:
        found: list[Any] = msgspec.convert(prompt, type_)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), within="prompt") from error
    return found


def _echo(request: CompletionRequest, prompts: list[dict[str, Any]]) -> list[str]:
    if request.logprobs is not None:
        raise unsupported("echo", "with 'logprobs': the prompt's log probabilities are not computed.")
    if "prompt" not in prompts[0]:
        raise unsupported("echo", "with token ids: give the prompt as text.")
    return [prompt["prompt"] for prompt in prompts]


def _stops(stop: str | list[str] | None, settings: HttpSettings) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > settings.stop_sequences_max:
        message = f"Invalid 'stop': expected at most {settings.stop_sequences_max} sequences, got {len(stops)}."
        raise invalid(message, "stop", "array_above_max_length")
    for text in stops:
        if not 1 <= len(text) <= settings.stop_chars_max:
            message = f"Invalid 'stop': a sequence has 1 to {settings.stop_chars_max} characters, not {len(text)}."
            raise invalid(message, "stop", "invalid_length")
    return stops


def _decode(decoder: msgspec.json.Decoder[Request], body: bytes) -> Request:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"We could not parse the JSON body of your request: {error}."
        raise invalid(message, None, "invalid_json") from error
    except RecursionError as error:
        raise invalid("The JSON body of your request is nested too deeply.", None, "invalid_json") from error


def _is_other_kind(top: str, path: str) -> bool:
    """Whether the value is of a kind that OpenAI has and Holdfast hasn't, such as a tool that is no function."""
    return top in ("tools", "tool_choice", "response_format") and path.endswith(".type")


def _refusal(message: str, within: str = "") -> RequestRefused:
    """msgspec's error in OpenAI's words, with the field's path."""
    found = _AT.match(message)
    assert found is not None
    what, path = found["what"], found["path"] or ""
    path = path if not within else within + path if path.startswith("[") or not path else f"{within}.{path}"
    if missing := _MISSING.match(what):
        param = f"{path}.{missing['field']}".lstrip(".")
        return invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    if unknown := _UNKNOWN.match(what):
        param = f"{path}.{unknown['field']}".lstrip(".")
        return invalid(f"Unrecognized request argument supplied: {param}", param, "unknown_parameter")
    top = _TOP.match(path)
    if top is not None and (top[0] in UNSUPPORTED or _is_other_kind(top[0], path)):
        return unsupported(path, f"can't have this value here ({what}).")
    if not path:
        return invalid(f"Invalid request body: {what}.", None, "invalid_type")
    code = "invalid_type" if what.startswith("Expected") and ", got " in what else "invalid_value"
    return invalid(f"Invalid value for '{path}': {what}.", path, code)
