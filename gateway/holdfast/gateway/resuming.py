"""Taking up a stream that another gateway began: `Last-Event-ID` with the same request.

An event's id holds all that is needed: the response's id, with the seed in it, and how many tokens of each choice
the client has. The replica that still holds the stream is found by that id; else a deterministic engine draws the
tokens again. The client gets what comes after those that it has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from holdfast.core.sampling import derive
from holdfast.gateway.asking import Asked
from holdfast.gateway.backend import Resumption
from holdfast.gateway.problems import invalid

FIELD: Final = "Last-Event-ID"
_ID: Final = re.compile(
    rb"(?P<id>(?P<prefix>[a-z]+)-[0-9a-f]{16}(?P<seed>[0-9a-f]{16})):(?P<counts>\d{1,9}(,\d{1,9})*)"
)


@dataclass(frozen=True, slots=True)
class Resume:
    """Where to go on: `counts` tokens of each choice are delivered under the response id."""

    response_id: str
    seed: int
    counts: tuple[int, ...]


def resume_of(headers: dict[bytes, bytes], prefix: str) -> Resume | None:
    """What `Last-Event-ID` asks for, if anything. Raises `RequestRefused` when it is no id of this kind of stream."""
    header = headers.get(b"last-event-id")
    if header is None:
        return None
    match = _ID.fullmatch(header.strip())
    if match is None or match["prefix"].decode() != prefix:
        raise invalid("This is not the id of an event of such a stream.", FIELD, "invalid_value")
    seed = int(match["seed"], 16)
    signed = seed - (1 << 64) if seed >> 63 else seed
    return Resume(match["id"].decode(), signed, tuple(map(int, match["counts"].split(b","))))


def resumed(asked: Asked, resume: Resume) -> Asked:
    """The request with the seeds of the stream that it goes on with. Raises `RequestRefused` where it can't be that."""
    if not asked.stream:
        raise invalid("Only a streamed request can be resumed.", FIELD, "cannot_resume")
    if len(resume.counts) != len(asked.choices):
        message = (
            f"The stream had {len(resume.counts)} choices, this request has {len(asked.choices)}: send the same one."
        )
        raise invalid(message, FIELD, "invalid_value")
    if asked.echo is not None and 0 in resume.counts:
        message = "The stream's echo may have been sent or not: before its first token it can't be resumed."
        raise invalid(message, FIELD, "cannot_resume")
    per_prompt = len(asked.choices) // asked.prompts
    for at, choice in enumerate(asked.choices):
        sampling = msgspec.structs.replace(choice.sampling, seed=derive(resume.seed, at % per_prompt))
        asked.choices[at] = msgspec.structs.replace(choice, sampling=sampling)
    asked.seed = resume.seed
    return asked


def resumption_of(asked: Asked, resume: Resume) -> Resumption:
    """What the session has to know: tool calls and text offsets depend on all text before them."""
    offsets = asked.logprobs >= 0 and asked.choices[0].messages is None
    return Resumption(resume.counts, replay=asked.calls or offsets)
