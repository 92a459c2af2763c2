"""Text comes back from ids piece by piece exactly as the tokenizer itself would give it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from holdfast.actors.engines.torch.chat import ChatTemplate
from holdfast.actors.engines.torch.tokenizer import ModelTokenizer
from holdfast.core.errors import InvalidConfig, RequestRefused
from holdfast.core.requests import Message
from tests.unit.torch_engine.models import SHIPPED, make_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> ModelTokenizer:
    return ModelTokenizer(directory / "tokenizer.json")


@pytest.fixture(scope="module")
def reference(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def pieces(tokenizer: ModelTokenizer, ids: list[int], already: int = 0) -> list[str]:
    decoder = tokenizer.decoder(ids[:already])
    return [decoder.feed(token) for token in ids[already:]]


@given(st.text())
def test_any_text_comes_back_piece_by_piece(tokenizer: ModelTokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert "".join(pieces(tokenizer, ids)) == text


@given(st.lists(st.integers(0, 320), max_size=30))
def test_any_ids_give_the_tokenizer_s_own_text_up_to_an_unfinished_character(
    tokenizer: ModelTokenizer, reference: Tokenizer, ids: list[int]
) -> None:
    whole = reference.decode(ids, skip_special_tokens=True)
    text = "".join(pieces(tokenizer, ids))
    assert whole.startswith(text)
    assert whole[len(text) :].strip("\ufffd") == ""


@given(st.lists(st.integers(0, 320), max_size=20), st.data())
def test_a_resumed_stream_goes_on_with_the_text_that_comes_next(
    tokenizer: ModelTokenizer, ids: list[int], data: st.DataObject
) -> None:
    already = data.draw(st.integers(0, len(ids)))
    assert pieces(tokenizer, ids, already) == pieces(tokenizer, ids)[already:]


def test_the_bytes_of_a_character_are_held_back_until_it_is_whole(tokenizer: ModelTokenizer) -> None:
    ids = tokenizer.encode("🦀", add_special_tokens=False)
    assert len(ids) > 1
    assert pieces(tokenizer, ids) == [""] * (len(ids) - 1) + ["🦀"]


def test_special_tokens_have_a_name_but_no_text(tokenizer: ModelTokenizer) -> None:
    assert tokenizer.encode("<|end|>", add_special_tokens=False) == [1]
    assert tokenizer.token_bytes(1) == b"<|end|>"
    assert pieces(tokenizer, [1]) == [""]
    (added,) = tokenizer.encode("plain added", add_special_tokens=False)
    assert pieces(tokenizer, [added]) == ["plain added"]


def test_ids_beyond_the_tokenizer_are_empty(tokenizer: ModelTokenizer) -> None:
    assert tokenizer.token_bytes(100_000) == b""
    assert pieces(tokenizer, [100_000]) == [""]


def test_a_tokenizer_that_falls_back_on_bytes_is_understood(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "▁hi": 257, "▁": 258}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = [257, *(byte + 1 for byte in "ü".encode()), 0, 258, 257]
    text = pieces(ModelTokenizer(tmp_path / "tokenizer.json"), ids)
    assert text == [" hi", "", "ü", "", " ", " hi"]
    assert "".join(text).removeprefix(" ") == tokenizer.decode(ids)


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(InvalidConfig, match="can't be read as a tokenizer"):
        ModelTokenizer(path)
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0}))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(path))
    with pytest.raises(InvalidConfig, match="the decoder is WordPiece"):
        ModelTokenizer(path)


CHATS: tuple[list[Message], ...] = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": " Be kind. "}, {"role": "user", "content": "Hi\n"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("shipped", [True, False])
def test_chats_become_the_same_ids_as_with_transformers(directory: Path, chat: list[Message], shipped: bool) -> None:
    path = SHIPPED if shipped else directory
    reference = PreTrainedTokenizerFast.from_pretrained(path)
    rendered: Any = reference.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    text = ChatTemplate(path).render(chat)
    assert text == rendered
    ids = ModelTokenizer(path / "tokenizer.json").encode(text, add_special_tokens=False)
    assert ids == reference.encode(rendered, add_special_tokens=False)


def test_content_may_be_text_nothing_or_text_parts(directory: Path) -> None:
    template = ChatTemplate(directory)
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "<|user|>one\ntwo<|end|>" in template.render([{"role": "user", "content": parts}])
    assert "<|assistant|><|end|>" in template.render([{"role": "assistant", "content": None}])


@pytest.mark.parametrize(
    ("messages", "code", "text"),
    [
        ([{"role": "user", "content": [{"type": "image_url"}]}], "unsupported_content", "'image_url'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "invalid_messages", "must have a text"),
        ([{"role": "user", "content": ["x"]}], "invalid_messages", "must be an object"),
        ([{"role": "user", "content": 7}], "invalid_messages", "text or a list"),
        ([{"role": "wizard", "content": "x"}], "invalid_messages", "no such role: wizard"),
        ([{"content": "x"}], "invalid_messages", "with a role"),
        ([], "invalid_messages", "must not be empty"),
    ],
)
def test_messages_that_can_t_be_rendered_are_refused(
    directory: Path, messages: list[Message], code: str, text: str
) -> None:
    with pytest.raises(RequestRefused, match=text) as refusal:
        ChatTemplate(directory).render(messages)
    assert (refusal.value.code, refusal.value.param) == (code, "messages")


def template_of(directory: Path, template: object, **settings: object) -> ChatTemplate:
    settings = {"chat_template": template, **settings}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return ChatTemplate(directory, now=lambda: datetime(2026, 7, 26))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{{ strftime_now('%d %B %Y') }}", "26 July 2026"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "<ü>"}'),
        ("{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% break %}{% endfor %}", "user"),
        ([{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}], "yes"),
    ],
)
def test_templates_find_what_transformers_gives_them(tmp_path: Path, template: object, expected: str) -> None:
    chat = template_of(tmp_path, template, bos_token={"content": "<s>"}, eos_token="</s>")
    assert chat.render([{"role": "user", "content": "<ü>"}]) == expected


@pytest.mark.parametrize("template", ["{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ 1 / 0 }}"])
def test_a_template_is_sandboxed_and_its_failure_is_a_refusal(tmp_path: Path, template: str) -> None:
    with pytest.raises(RequestRefused) as refusal:
        template_of(tmp_path, template).render([{"role": "user", "content": "x"}])
    assert refusal.value.code == "invalid_messages"


def test_a_broken_template_is_found_when_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="can't be compiled"):
        template_of(tmp_path, "{% if %}")


def test_without_a_template_chats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestRefused) as refusal:
        ChatTemplate(tmp_path).render([{"role": "user", "content": "x"}])
    assert refusal.value.code == "no_chat_template"
