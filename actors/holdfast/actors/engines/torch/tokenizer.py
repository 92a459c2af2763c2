"""Text to token ids and back, from a model directory's tokenizer files.

The way back works on bytes: every token id stands for some bytes, and a stream's text is the UTF-8 of their
concatenation. So the text after n tokens depends on the ids only, not on how they were fed or by whom, and a
stream that is resumed after some ids goes on with exactly the text that comes next.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from holdfast.core.errors import InvalidConfig

_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_START: Final = "▁"


LONG_TEXT_CHARS = 8192
NORMALIZER_MARGIN = 4
"""How many characters a normalizer is taken to make one of, at most, where there is one."""


class StreamDecoder:
    """One stream's text, as its tokens come. Bytes of an incomplete character are held back."""

    def __init__(self, visible: list[bytes]) -> None:
        self._visible = visible
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The text that this token completes; empty for special tokens and within a character."""
        return self._utf8.decode(self._visible[token]) if token < len(self._visible) else ""


class ModelTokenizer:
    """A tokenizer whose tokens stand for bytes: byte-level BPE (Llama 3), or SentencePiece's with bytes to fall
    back on (Llama 2).
    """

    def __init__(self, path: Path) -> None:
        """Raises `InvalidConfig` when the file is missing, broken, or of another kind."""
        try:
            # The bindings raise bare `Exception` for whatever is wrong with the file.
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise InvalidConfig(f"{path} can't be read as a tokenizer: {error}") from error
        self._own = _bytes_of_tokens(self._tokenizer, path)
        self._visible = list(self._own)
        # A token of n bytes stands for at most n characters. A normalizer may drop some before they are counted.
        margin = 1 if self._tokenizer.normalizer is None else NORMALIZER_MARGIN
        self._longest_chars = margin * max(1, *(len(own) for own in self._own))
        for token, added in self._tokenizer.get_added_tokens_decoder().items():
            if added.special:
                self._visible[token] = b""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The text's ids. A long text is encoded with the interpreter free for other threads."""
        if len(text) > LONG_TEXT_CHARS:
            # `encode` holds the interpreter's lock all the while (3 s for 4 MB), `encode_batch` lets go of it.
            encoding = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        else:
            encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of the text's length in tokens, at once."""
        return len(text) // self._longest_chars

    def token_bytes(self, token: int) -> bytes:
        """The token's own text; that of a special token is its name. Empty for ids that no token has."""
        return self._own[token] if token < len(self._own) else b""

    def is_special(self, token: int) -> bool:
        """Whether the token has a name and no text."""
        return token < len(self._own) and bool(self._own[token]) and not self._visible[token]

    def decoder(self, already: Iterable[int] = ()) -> StreamDecoder:
        """A decoder that goes on after the tokens in `already`."""
        decoder = StreamDecoder(self._visible)
        for token in already:
            decoder.feed(token)
        return decoder


def _bytes_of_tokens(tokenizer: Tokenizer, path: Path) -> list[bytes]:
    kinds = set(_decoder_kinds(json.loads(tokenizer.to_str()).get("decoder")))
    if "ByteLevel" in kinds:
        alphabet = _byte_level_alphabet()
        return [_byte_level(token, alphabet) for token in _tokens(tokenizer)]
    if "ByteFallback" in kinds:
        return [_byte_fallback(token) for token in _tokens(tokenizer)]
    raise InvalidConfig(
        f"{path}: the decoder is {', '.join(sorted(kinds)) or 'missing'}; supported are ByteLevel and ByteFallback"
    )


def _decoder_kinds(decoder: dict[str, Any] | None) -> Iterator[str]:
    if decoder is None:
        return
    if decoder["type"] != "Sequence":
        yield decoder["type"]
    for inner in decoder.get("decoders", ()):
        yield from _decoder_kinds(inner)


def _tokens(tokenizer: Tokenizer) -> list[str]:
    """The token of each id, empty where the vocabulary has a hole."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    tokens = [""] * (max(vocabulary.values(), default=-1) + 1)
    for token, number in vocabulary.items():
        tokens[number] = token
    return tokens


def _byte_level(token: str, alphabet: dict[str, int]) -> bytes:
    """A token with a character outside the alphabet is an added one and stands for itself."""
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, src/encoder.py, `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update((chr(256 + n), byte) for n, byte in enumerate(others))
    return alphabet


def _byte_fallback(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_WORD_START, " ").encode()
