"""Keeps streams to their grammars, with llguidance: which tokens may come next.

A guide's state is a function of its grammar and of the tokens that the stream has generated, nothing else. So a
stream that is resumed feeds it the accepted tokens and has the state that the first attempt had.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from holdfast.actors.engines.torch.grammar_check import GrammarChecker
from holdfast.actors.engines.torch.grammar_text import grammar_of, invalid_schema, param_of
from holdfast.actors.engines.torch.tokenizer import ModelTokenizer
from holdfast.core.errors import RequestRefused
from holdfast.core.requests import EngineRequest

if TYPE_CHECKING:
    from llguidance import LLMatcher

GRAMMARS_MAX: Final = 32
"""Compiled grammars that are kept for the next request."""

COMPILE_S_MAX: Final = 0.5
"""Processor time that compiling a grammar may take, in seconds: the engine's streams wait meanwhile."""

RESUMED_FACTOR: Final = 4
"""A stream that was begun elsewhere gets so much more time: what one replica compiled, the next must."""


class Guide:
    """One stream's place in its grammar."""

    def __init__(self, copy: Callable[[], LLMatcher], end_tokens: Sequence[int], vocab_size: int) -> None:
        self._copy = copy
        self._matcher = copy()
        self._end_tokens = list(end_tokens)
        self._vocab_size = vocab_size
        self.broken = False
        self.may_go_on = True

    def accept(self, tokens: Sequence[int]) -> bool:
        """Go past these tokens; whether the grammar allows them."""
        return bool(self._matcher.consume_tokens(list(tokens)))

    def allowed(self, tokens: Sequence[int], begin: int) -> torch.Tensor:
        """Which tokens may come next, as a boolean for each id; the text's own are those of `tokens` from `begin`.

        Afterwards `may_go_on` tells whether there is one that doesn't end the text. The library bounds how much
        a state may hold. Where that is reached a fresh copy is tried, so that the outcome doesn't depend on what
        was computed on the way; and if that won't do, then the stream is `broken`, and only its end may follow.
        """
        mask = self._mask()
        if mask is None:
            self._matcher = self._copy()
            mask = self._mask() if self.accept(tokens[begin:]) else None
        if mask is None:
            self.broken = True
            mask = np.zeros(self._vocab_size, dtype=bool)
            mask[self._end_tokens] = True
        self.may_go_on = int(np.count_nonzero(mask)) > int(np.count_nonzero(mask[self._end_tokens]))
        return torch.from_numpy(mask)

    def _mask(self) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            return None
        mask = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(bool)
        return mask if mask.any() else None


class Grammars:
    """Compiles requests' grammars for one tokenizer, and keeps the latest. For one thread at a time."""

    def __init__(self, tokenizer: ModelTokenizer, end_tokens: Sequence[int], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._vocab_size = vocab_size
        self._checker = GrammarChecker()
        self._tokens: Any = None
        self._kept: OrderedDict[str, LLMatcher | str] = OrderedDict()

    @property
    def available(self) -> bool:
        """Whether grammars can be enforced here: the library is installed, and the model has an end token."""
        return find_spec("llguidance") is not None and bool(self._end_tokens)

    def guide(self, request: EngineRequest) -> Guide | None:
        """The request's guide, past the accepted tokens; None where any text will do. Raises `RequestRefused`."""
        grammar = grammar_of(request)
        if grammar is None:
            return None
        if not self.available:
            raise _unavailable(request)
        if request.ignore_eos:
            message = (
                f"'ignore_eos' can't be combined with '{param_of(request)}': the grammar says where the text ends."
            )
            raise RequestRefused(message, code="invalid_value", param="ignore_eos")
        compiled = self._compiled(grammar, resumed=bool(request.accepted))
        if isinstance(compiled, str):
            raise invalid_schema(compiled, request)
        guide = Guide(compiled.deep_copy, self._end_tokens, self._vocab_size)
        if not guide.accept(request.accepted):
            message = f"The accepted tokens are not what '{param_of(request)}' allows."
            raise RequestRefused(message, code="invalid_token", param="accepted")
        return guide

    def close(self) -> None:
        """End the process that checks grammars."""
        self._checker.close()

    def _compiled(self, grammar: str, *, resumed: bool) -> LLMatcher | str:
        """The compiled grammar, or what is wrong with it; either is kept."""
        found = self._kept.pop(grammar, None)
        if found is None or (isinstance(found, str) and resumed):
            found = self._compile(grammar, COMPILE_S_MAX * (RESUMED_FACTOR if resumed else 1))
        self._kept[grammar] = found
        if len(self._kept) > GRAMMARS_MAX:
            self._kept.popitem(last=False)
        return found

    def _compile(self, grammar: str, processor_s: float) -> LLMatcher | str:
        error = self._checker.check(grammar, processor_s)
        if error is not None:
            return error
        import llguidance

        if self._tokens is None:
            wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._end_tokens, self._vocab_size))
            self._tokens = llguidance.LLTokenizer(wrapper, eos_token=list(self._end_tokens))
        limits = llguidance.LLParserLimits(verbose_errors=False)
        matcher = llguidance.LLMatcher(self._tokens, grammar, log_level=0, limits=limits)
        return str(matcher.get_error()) or matcher


class _Vocabulary:
    """The tokenizer as llguidance wants it. Ids that the model has and the tokenizer hasn't stand for nothing."""

    bos_token_id = None

    def __init__(self, tokenizer: ModelTokenizer, end_tokens: Sequence[int], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = end_tokens[0]
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        self.special_token_ids = [token for token in range(vocab_size) if tokenizer.is_special(token)]

    def __call__(self, text: bytes | str) -> list[int]:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(plain, add_special_tokens=False)


def _unavailable(request: EngineRequest) -> RequestRefused:
    param = param_of(request)
    if find_spec("llguidance") is None:
        why = "needs the package llguidance, which is not installed on the replica (pip install 'holdfast[torch]')."
    else:
        why = "needs a model with an end-of-sequence token."
    return RequestRefused(f"Unsupported: '{param}' {why}", code="unsupported_value", param=param)
