"""Turns a request into a stream, or refuses it: all that is wrong with a request shows here, before any work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from holdfast.actors.engines.torch.chat import ChatTemplate
from holdfast.actors.engines.torch.grammars import Grammars
from holdfast.actors.engines.torch.sampler import has_penalties
from holdfast.actors.engines.torch.scheduler import Stream
from holdfast.actors.engines.torch.tokenizer import ModelTokenizer
from holdfast.core.errors import RequestRefused
from holdfast.core.requests import EngineRequest

LOGPROBS_MAX: Final = 20
"""OpenAI's limit for `top_logprobs`."""


class Admission:
    """Tokenizes and checks requests for one model."""

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        chat: ChatTemplate,
        grammars: Grammars,
        *,
        vocab_size: int,
        context_tokens_max: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._chat = chat
        self._grammars = grammars
        self._vocab_size = vocab_size
        self._context_tokens_max = context_tokens_max

    def stream(self, key: int, request: EngineRequest) -> Stream:
        """The request as a stream that hasn't computed anything yet. Raises `RequestRefused`."""
        _check_sampling(request)
        self._check_ids(request.accepted, "accepted")
        prompt, param = self._prompt(request)
        self._check_ids(prompt, param)
        if not prompt:
            raise RequestRefused("The prompt has no tokens.", code="empty_prompt", param=param)
        tokens_max = self._tokens_max(len(prompt), request.max_tokens, param)
        counts = Counter(request.accepted) if has_penalties(request.sampling) else None
        return Stream(
            key=key,
            request=request,
            tokens=[*prompt, *request.accepted],
            prompt_tokens=len(prompt),
            tokens_max=tokens_max,
            decoder=self._tokenizer.decoder(request.accepted),
            counts=counts,
            guide=self._grammars.guide(request),
        )

    def _prompt(self, request: EngineRequest) -> tuple[list[int], str]:
        """The prompt's ids, and the field that they came from."""
        if request.messages is not None:
            text = self._chat.render(request.messages, request.tools)
            self._check_length(text, "messages")
            # The template writes the special tokens itself.
            return self._tokenizer.encode(text, add_special_tokens=False), "messages"
        if request.prompt is not None:
            self._check_length(request.prompt, "prompt")
            return self._tokenizer.encode(request.prompt, add_special_tokens=True), "prompt"
        return list(request.prompt_tokens or ()), "prompt"

    def _check_length(self, text: str, param: str) -> None:
        """Refuse what can't fit however it is cut into tokens, before it costs seconds to cut it."""
        fewest = self._tokenizer.fewest_tokens(text)
        if fewest >= self._context_tokens_max:
            raise _too_long(
                f"This model's maximum context length is {self._context_tokens_max} tokens. However, your {param} "
                f"resulted in more than {fewest} tokens. Please reduce the length of the {param}.",
                param,
            )

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        for token in ids:
            if not 0 <= token < self._vocab_size:
                raise RequestRefused(
                    f"Token id {token} is outside the vocabulary of {self._vocab_size}.",
                    code="invalid_token",
                    param=param,
                )

    def _tokens_max(self, prompt: int, completion: int, param: str) -> int:
        """How long the stream may become, prompt included. The wording of the errors is OpenAI's."""
        limit = self._context_tokens_max
        head = f"This model's maximum context length is {limit} tokens. However, "
        if prompt >= limit:
            raise _too_long(
                f"{head}your {param} resulted in {prompt} tokens. Please reduce the length of the {param}.", param
            )
        if prompt + completion > limit:
            raise _too_long(
                f"{head}you requested {prompt + completion} tokens ({prompt} in the {param}, {completion} in the "
                f"completion). Please reduce the length of the {param} or completion.",
                param,
            )
        return prompt + completion if completion else limit


def _check_sampling(request: EngineRequest) -> None:
    sampling = request.sampling
    wrong = (
        (not 0 <= sampling.temperature < float("inf"), "temperature", "must not be negative"),
        (not 0 < sampling.top_p <= 1, "top_p", "must be above 0 and at most 1"),
        (sampling.top_k < 0, "top_k", "must not be negative"),
        (not _is_penalty(sampling.presence_penalty), "presence_penalty", "must be between -2 and 2"),
        (not _is_penalty(sampling.frequency_penalty), "frequency_penalty", "must be between -2 and 2"),
        (request.max_tokens < 0, "max_tokens", "must not be negative"),
        (request.min_tokens < 0, "min_tokens", "must not be negative"),
        (not -1 <= request.logprobs <= LOGPROBS_MAX, "top_logprobs", f"must be at most {LOGPROBS_MAX}"),
    )
    for is_wrong, param, text in wrong:
        if is_wrong:
            raise RequestRefused(f"{param} {text}.", code="invalid_value", param=param)


def _is_penalty(value: float) -> bool:
    return -2 <= value <= 2


def _too_long(text: str, param: str) -> RequestRefused:
    return RequestRefused(text, code="context_length_exceeded", param=param)
