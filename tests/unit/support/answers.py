"""Streamed answers, so that they can be compared."""

from __future__ import annotations

import re

from tests.unit.gateway.client import Answer

_VARIES = re.compile(r'"id":"(?:chatcmpl|cmpl)-[0-9a-f]{32}"|"id":"call_[0-9a-f]+"|"created":\d+')
_INDEX = re.compile(r'"index":(\d+)')


def by_choice(answer: Answer) -> dict[int, list[str]]:
    """A stream's events, in order, by choice; -1 has those of none. Each is `<count of tokens> <data>`.

    The response's id and what follows from it (calls' ids), and its time, are left out. Of several choices the
    counts are left out too: how far the others are is another matter in every run.
    """
    found: dict[int, list[str]] = {}
    for event in answer.events:
        index = _INDEX.search(event.data)
        counts = event.id.rsplit(":", 1)[1]
        text = _VARIES.sub('"-":0', event.data)
        found.setdefault(int(index[1]) if index else -1, []).append(f"{'' if ',' in counts else counts} {text}")
    return found


def assert_given_up(answer: Answer, undisturbed: dict[int, list[str]], code: str) -> int:
    """The right beginning, then one error event with the code, and nothing after it; how many events were right."""
    got = by_choice(answer)
    last = got[-1].pop()
    assert f'"code":"{code}"' in last, last
    assert got.pop(-1) == []
    for choice, events in got.items():
        assert events == undisturbed[choice][: len(events)]
    assert '"error"' in answer.events[-1].data
    return sum(map(len, got.values()))
