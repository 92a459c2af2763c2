"""The training text of the tiny model: handwritten prose, and handwritten grammars that a seed expands.

A model of two million parameters needs some megabytes of text to write plain English, more than a person
writes in a week, and the project ships no text that it did not write. So the files in ``corpus/`` are of
two kinds: ``prose_*.txt`` is repeated as it stands, and ``grammar_*.txt`` holds stories, dialogues and
explanations as rules with alternatives. One seed gives one corpus, byte for byte.

The grammar in five lines: ``@rule`` opens a rule, and each line under it is one alternative; ``{rule}``
inserts an alternative of another rule; ``@!rule`` keeps its choice for the whole document (a red kite stays
red); ``[a|b]`` picks in place; `` // `` is a paragraph break and `` / `` a line break.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CORPUS_DIR = Path(__file__).parent / "corpus"
EXPANSIONS_MAX = 2000
"""A document that needs more expansions than this has a rule that contains itself."""

MADE_UP_SHARE = 0.15
"""How many of the people in the stories have a name that is in no list."""

Rules = dict[str, list[str]]

SLOT = re.compile(r"\{(\w+)\}")
CHOICE = re.compile(r"\[([^\[\]]*)\]")
SENTENCE_START = re.compile(r"(^|[.!?] |\n)([a-z])")
WRONG_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])(?!one\b|un[ie]|use)")


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue."""

    role: str
    content: str


@dataclass(frozen=True)
class Document:
    """One training document: plain text, or a dialogue in the chat format."""

    text: str = ""
    messages: tuple[Message, ...] = ()

    def render(self) -> str:
        """The document as the model sees it, special tokens included."""
        if not self.messages:
            return f"<|begin|>{self.text}<|end|>"
        return "<|begin|>" + "".join(f"<|{m.role}|>{m.content}<|end|>" for m in self.messages)


@dataclass(frozen=True)
class Grammar:
    """All rules of all grammar files, and which of them keep one choice for a document."""

    rules: Rules
    kept: frozenset[str]

    @classmethod
    def load(cls, folder: Path = CORPUS_DIR) -> Grammar:
        """Read every ``grammar_*.txt`` of the folder; raises ValueError where a rule is declared twice."""
        rules: Rules = {}
        kept: set[str] = set()
        for path in sorted(folder.glob("grammar_*.txt")):
            for name, lines in _rules_of(path):
                if name.removeprefix("!") in rules:
                    raise ValueError(f"{path.name}: rule {name!r} is declared twice")
                rules[name.removeprefix("!")] = lines
                if name.startswith("!"):
                    kept.add(name[1:])
        return cls(rules, frozenset(kept))


def _rules_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", list[str]()
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("@"):
            if name:
                yield name, lines
            name, lines = line[1:].strip(), []
        elif line and not line.startswith("#"):
            lines.append(line)
    yield name, lines


@dataclass
class Writer:
    """Expands rules for one document; remembers its people and its kept choices."""

    grammar: Grammar
    rng: random.Random
    bound: dict[str, str] = field(default_factory=dict)

    def rule(self, name: str) -> str:
        """One expansion of a rule, as finished text."""
        return polish(self.expand("{" + name + "}"))

    def pair(self, name: str) -> tuple[str, str]:
        """A question and its answer from a ``qa_*`` rule, sharing the kept choices."""
        question, answer = self.rng.choice(self.grammar.rules[name]).split("=>")
        return polish(self.expand(question)), polish(self.expand(answer))

    def expand(self, text: str) -> str:
        """Replace the innermost choice or the first slot until neither is left."""
        for _ in range(EXPANSIONS_MAX):
            if match := CHOICE.search(text):
                text = _splice(text, match, self.rng.choice(match[1].split("|")))
            elif match := SLOT.search(text):
                text = _splice(text, match, self._slot(match[1]))
            else:
                return text
        raise ValueError(f"the text does not come to an end: {text[:200]!r}")

    def _slot(self, name: str) -> str:
        if name in self.bound:
            return self.bound[name]
        value = self.rng.choice(self.grammar.rules[name])
        if name in self.grammar.kept:
            value = self.bound[name] = self.expand(value)
        return value

    def cast(self, kind: str = "") -> None:
        """Choose the hero (of the given kind, if any), a friend with another name, and somebody older."""
        self._introduce("", "name", "kind", kind)
        hero = self.bound["name"]
        self._introduce("f", "friend", "fkind", "")
        while self.bound["friend"] == hero:
            self._introduce("f", "friend", "fkind", "")
        self.bound["elder"], they = self.rng.choice(self.grammar.rules["elder"]).split("|")
        self._pronouns("e", they)

    def _introduce(self, prefix: str, name_key: str, kind_key: str, kind: str) -> None:
        kind = kind or self.rng.choice(["girl", "boy", "animal", "animal"])
        they = {"girl": "she", "boy": "he"}.get(kind) or self.rng.choice(["he", "she"])
        names = self.grammar.rules[kind if kind in ("girl", "boy") else "pet"]
        name = made_up_name(self.rng) if self.rng.random() < MADE_UP_SHARE else self.rng.choice(names)
        kind = self.rng.choice(self.grammar.rules["animal"]) if kind == "animal" else kind
        self.bound |= {name_key: name, kind_key: kind}
        self._pronouns(prefix, they)

    def _pronouns(self, prefix: str, they: str) -> None:
        him, his = ("him", "his") if they == "he" else ("her", "her")
        for key, value in (("he", they), ("him", him), ("his", his)):
            self.bound[prefix + key] = value
            self.bound[prefix + key.capitalize()] = value.capitalize()


def made_up_name(rng: random.Random) -> str:
    """A name that no list has: the model must copy it from the prompt and cannot know it by heart."""
    syllables = ("ba", "bo", "da", "do", "fi", "ja", "ka", "ki", "la", "lo", "ma", "mi", "na", "no", "pa")
    endings = ("bert", "ko", "la", "lin", "mar", "na", "ra", "ri", "ron", "sa", "ta", "vin", "x")
    first = rng.choice(syllables) if rng.random() < 0.5 else ""
    return (first + rng.choice(syllables) + rng.choice(endings)).capitalize()


def _splice(text: str, match: re.Match[str], value: str) -> str:
    return text[: match.start()] + value + text[match.end() :]


def polish(text: str) -> str:
    """Breaks, articles before vowels, spaces, and a capital letter at the start of each sentence."""
    text = text.replace(" // ", "\n\n").replace(" / ", "\n")
    text = re.sub(r" {2,}", " ", text).strip()
    text = WRONG_ARTICLE.sub(r"\1n ", text)
    return SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


def story(writer: Writer, kind: str = "", chapters: int = 1, keyword: str = "") -> str:
    """A story with one hero; later chapters open without introducing the hero again.

    A keyword narrows the choice to the plots in which it stands.
    """
    writer.cast(kind)
    plots = [plot for plot in writer.grammar.rules["plot"] if keyword in plot]
    parts = [polish(writer.expand(writer.rng.choice(plots)))]
    later = [plot for plot in writer.grammar.rules["plot"] if "{opening}" in plot]
    for _ in range(chapters - 1):
        for name in ("toy", "thing", "place", "color"):
            writer.bound.pop(name, None)
        chapter = writer.rng.choice(later).replace("{opening}", "{next_chapter}")
        parts.append(polish(writer.expand(chapter)))
    return "\n\n".join(parts)


def story_document(writer: Writer) -> Document:
    """A free story, one in eight of them with several chapters."""
    chapters = writer.rng.choice([1, 1, 1, 1, 1, 1, 1, writer.rng.randint(2, 5)])
    return Document(text=story(writer, chapters=chapters))


def note_document(writer: Writer) -> Document:
    """A short explanation of one or more parts of Holdfast, or of the harbour."""
    return Document(text=writer.rule("note"))


STORY_REQUESTS = (
    "Tell me a [|short |little |nice ]story about {about}.",
    "[Please tell|Can you tell|Tell] me a story about {about}[|, please].",
    "Write a [|short |little ]story about {about}.",
    "[I want|I would like|I'd like] [to hear |]a story about {about}.",
    "A story about {about}, please.",
)
OPEN_REQUESTS = (
    "Tell me a [|short |nice |good ]story.",
    "[Can|Could] you tell me a story?",
    "[Please tell|Tell] me a [|bedtime ]story[|, please].",
    "Write a [|short ]story.",
    "I want to hear a story.",
    "Once upon a time",
)
LONG_REQUESTS = (
    "Tell me a [long|very long] story[| about {about}].",
    "Write a [long|very long] story[| about {about}].",
)


THEMES = {
    "a storm": " storm",
    "a lighthouse": "lighthouse",
    "a race": "a big race",
    "snow": "It snowed",
    "the moon": "looked at the moon",
    "a treasure": "treasure",
    "a boat": "had a little boat",
    "a ship": "A ship came",
    "an anchor": "anchor fell",
    "a rope": "long rope",
    "a bridge": "old bridge",
    "a birthday": "birthday",
    "the fog": "thick fog",
    "a garden": "tiny seed",
    "a hat": " hat.",
    "an egg": "found an egg",
    "music": "concert",
    "a letter": "important letter",
    "a new friend": "A new {fkind}",
    "sharing": "enough for two",
    "rain": "It rained all day",
    "the night": "afraid of the dark",
    "the truth": "told me the truth",
}
"""What a story may be about when it is not about somebody, and how to know the plots that are about it."""


def story_turn(writer: Writer) -> tuple[str, str]:
    """Somebody asks for a story, about somebody or something or in general, and gets it."""
    requests = writer.rng.choices([STORY_REQUESTS, OPEN_REQUESTS, LONG_REQUESTS], weights=[6, 2, 1])[0]
    chapters = writer.rng.randint(2, 4) if requests is LONG_REQUESTS else 1
    if requests is STORY_REQUESTS and writer.rng.random() < 0.25:
        about = writer.rng.choice(list(THEMES))
        answer = story(writer, keyword=THEMES[about])
    else:
        kind = writer.rng.choice(heroes_of(writer.grammar))
        answer = story(writer, kind, chapters)
        forms = ["a {kind}", "a {kind}", "a {kind} named {name}", "a {kind} and a {fkind}"]
        about = writer.rng.choice(forms)
    request = writer.rng.choice(requests).replace("{about}", about)
    return polish(writer.expand(request)), answer


def heroes_of(grammar: Grammar) -> list[str]:
    """Whom a story can be about, in a fixed order; the common ones stand more than once."""
    return ["girl", "girl", "boy", "boy", *grammar.rules["animal"] * 2, *grammar.rules["other_hero"]]


NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def sum_turn(writer: Writer) -> tuple[str, str]:
    """Sums up to twenty, in digits or in words; small enough to be learned by heart."""
    a, b = writer.rng.randint(1, 10), writer.rng.randint(1, 10)
    ask = writer.expand("[What is|What's|How much is] ")
    if writer.rng.random() < 0.2:
        return f"{ask}{NUMBER_WORDS[a - 1]} plus {NUMBER_WORDS[b - 1]}?", f"{a} plus {b} is {a + b}."
    if writer.rng.random() < 0.3:
        return f"{ask}{a + b} - {b}?", f"{a + b} - {b} = {a}"
    sign = writer.rng.choice([" + ", "+", " plus "])
    return f"{ask}{a}{sign}{b}?", f"{a} + {b} = {a + b}"


def count_turn(writer: Writer) -> tuple[str, str]:
    """Counting: dull to read, and the easiest text in which to see a lost or repeated token."""
    last = writer.rng.choice([3, 5, 10, 10, 12, 15, 20, 20, 25, 30, 40, 50, 60, 80, 100, 100])
    first = 1 if writer.rng.random() < 0.8 else writer.rng.randint(2, last)
    ask = writer.expand(f"[Count|Please count|Can you count] from {first} to {last}[.|, please.|?]")
    if first == 1 and writer.rng.random() < 0.4:
        ask = writer.expand(f"[Count|Please count|Can you count] to {last}[.|?]")
    return ask, ", ".join(str(n) for n in range(first, last + 1)) + "."


def copy_turn(writer: Writer) -> tuple[str, str]:
    """Repeat a few words: teaches the model to look back at its prompt."""
    pool = [*writer.grammar.rules["thing"], *writer.grammar.rules["color"], *writer.grammar.rules["pet"]]
    words = " ".join(writer.rng.sample(pool, writer.rng.randint(1, 5)))
    return writer.expand("[Repeat after me|Say|Repeat|Please repeat]: ") + words, words


def grammar_turn(rule: str) -> Callable[[Writer], tuple[str, str]]:
    """A turn maker for one ``qa_*`` rule."""
    return lambda writer: writer.pair(rule)


TURNS: tuple[tuple[float, Callable[[Writer], tuple[str, str]]], ...] = (
    (30, story_turn),
    (22, grammar_turn("qa_holdfast")),
    (14, grammar_turn("qa_self")),
    (14, grammar_turn("qa_small")),
    (14, grammar_turn("qa_facts")),
    (10, grammar_turn("qa_unknown")),
    (5, sum_turn),
    (5, count_turn),
    (3, copy_turn),
)


def chat_document(writer: Writer) -> Document:
    """A dialogue of one to four turns, one in four of them under a system prompt."""
    messages = list[Message]()
    if writer.rng.random() < 0.25:
        messages.append(Message("system", writer.rule("system")))
    for _ in range(writer.rng.choice([1, 1, 1, 2, 2, 3, 4])):
        turn = Writer(writer.grammar, writer.rng)
        turn.bound["stranger"] = made_up_name(writer.rng)
        make = writer.rng.choices([made for _, made in TURNS], weights=[weight for weight, _ in TURNS])[0]
        question, answer = make(turn)
        messages += [Message("user", _typed(writer.rng, question)), Message("assistant", answer)]
    return Document(messages=tuple(messages))


def _typed(rng: random.Random, question: str) -> str:
    """People leave out capitals and marks; the model should not mind."""
    if rng.random() < 0.1:
        question = question.lower()
    if rng.random() < 0.15:
        question = question.rstrip(".?!")
    return question


def prose_documents(folder: Path = CORPUS_DIR) -> list[Document]:
    """Everything that was written by hand, in file order."""
    documents = list[Document]()
    for path in sorted(folder.glob("prose_*.txt")):
        _, _, body = path.read_text(encoding="utf-8").partition("\n")
        parse = _dialogue if path.stem == "prose_dialogues" else _plain
        documents += [parse(part.strip()) for part in body.split("\n---\n")]
    return documents


def _plain(text: str) -> Document:
    return Document(text=text)


def _dialogue(text: str) -> Document:
    roles = {"S": "system", "U": "user", "A": "assistant"}
    turns = (line.partition(": ") for line in text.splitlines())
    return Document(messages=tuple(Message(roles[mark], content) for mark, _, content in turns))


def build_corpus(seed: int, documents: int, prose_repeats: int = 6) -> list[Document]:
    """The whole corpus, shuffled: ``documents`` generated ones, and the prose ``prose_repeats`` times."""
    rng = random.Random(seed)
    grammar = Grammar.load()
    makers = (story_document, chat_document, note_document)
    made = [rng.choices(makers, weights=[45, 50, 5])[0](Writer(grammar, rng)) for _ in range(documents)]
    made += prose_documents() * prose_repeats
    rng.shuffle(made)
    return made
