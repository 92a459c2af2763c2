"""The shipped tiny model: its training text is reproducible and clean, and its tokenizer loses nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from examples.tiny_model.corpus import (
    THEMES,
    Document,
    Grammar,
    Message,
    Writer,
    build_corpus,
    polish,
    prose_documents,
    story,
)

ROOT = Path(__file__).parents[2]
MODEL_DIR = ROOT / "actors" / "holdfast" / "actors" / "models" / "tiny"
MODEL_BYTES_MAX = 6_000_000
PROSE_CHARACTERS_MIN = 30_000
GRAMMAR_MARKS = ["{", "}", "[", "]", "|", "@", "=>", " / ", "//"]
STRANGE_TEXTS = ["naïve — 日本語 🦊", "\U0001f3f3\ufe0f\u200d\U0001f308", " \t\n x\r\n", "e\u0301 \x00"]
SPECIAL_TOKENS = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def rendered(seed: int, documents: int) -> list[str]:
    return [document.render() for document in build_corpus(seed, documents)]


def without_special_tokens(text: str) -> str:
    for token in SPECIAL_TOKENS:
        text = text.replace(token, "")
    return text


def test_the_same_seed_gives_the_same_corpus() -> None:
    assert rendered(3, 200) == rendered(3, 200)


def test_another_seed_gives_another_corpus() -> None:
    assert rendered(3, 200) != rendered(4, 200)


def test_no_placeholder_or_choice_is_left_in_the_text() -> None:
    texts = [without_special_tokens(text) for text in rendered(5, 1500)]
    assert not [text for text in texts if any(mark in text for mark in GRAMMAR_MARKS)]


def test_every_alternative_of_every_rule_can_be_expanded() -> None:
    grammar = Grammar.load()
    for lines in grammar.rules.values():
        for line in lines:
            writer = Writer(grammar, random.Random(1), {"stranger": "Bora"})
            writer.cast()
            writer.expand(line)


def test_a_rule_that_contains_itself_is_refused() -> None:
    writer = Writer(Grammar({"loop": ["{loop} again"]}, frozenset()), random.Random(1))
    with pytest.raises(ValueError, match="does not come to an end"):
        writer.rule("loop")


def test_a_rule_that_is_declared_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "grammar_a.txt").write_text("@color\nred\n\n@!color\nblue\n")
    with pytest.raises(ValueError, match="declared twice"):
        Grammar.load(tmp_path)


def test_a_kept_rule_keeps_its_choice_within_a_document() -> None:
    grammar = Grammar({"color": ["red", "blue", "green"]}, frozenset({"color"}))
    words = Writer(grammar, random.Random(1)).expand("{color} {color} {color} {color}").split()
    assert len(set(words)) == 1


@pytest.mark.parametrize("keyword", THEMES.values(), ids=THEMES.keys())
def test_every_theme_has_a_plot(keyword: str) -> None:
    writer = Writer(Grammar.load(), random.Random(1))
    assert story(writer, keyword=keyword)


def test_polishing_mends_articles_capitals_and_breaks() -> None:
    raw = "a owl had a  unicorn. it flew // away / home"
    assert polish(raw) == "An owl had a unicorn. It flew\n\nAway\nHome"


def test_a_dialogue_is_rendered_in_the_chat_format() -> None:
    dialogue = Document(messages=(Message("user", "Hi"), Message("assistant", "Hello!")))
    assert dialogue.render() == "<|begin|><|user|>Hi<|end|><|assistant|>Hello!<|end|>"


def test_the_shipped_template_renders_dialogues_as_they_were_trained() -> None:
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Template((MODEL_DIR / "chat_template.jinja").read_text())
    messages = (Message("system", "Be brief."), Message("user", "Hi"))
    as_dicts = [{"role": m.role, "content": m.content} for m in messages]
    prompt = template.render(messages=as_dicts, bos_token="<|begin|>", add_generation_prompt=True)
    assert prompt == Document(messages=messages).render() + "<|assistant|>"


def test_enough_of_the_corpus_is_prose_written_by_hand() -> None:
    assert sum(len(document.render()) for document in prose_documents()) > PROSE_CHARACTERS_MIN


@pytest.mark.parametrize("text", ["Once upon a time", *STRANGE_TEXTS, ""])
def test_the_shipped_tokenizer_gives_any_text_back(text: str) -> None:
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_the_special_tokens_come_first_in_the_vocabulary() -> None:
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert tokenizer.encode("Hi").ids[0] == 0


def test_the_shipped_configuration_ends_generation_at_the_end_token() -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text())
    generation = json.loads((MODEL_DIR / "generation_config.json").read_text())
    assert (config["eos_token_id"], generation["eos_token_id"]) == (1, [1])
    assert config["num_key_value_heads"] < config["num_attention_heads"]


def test_the_shipped_model_stays_small() -> None:
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) < MODEL_BYTES_MAX
