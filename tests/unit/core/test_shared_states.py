"""States of a large cluster share what they have in common: no event changes a state that somebody still holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from hypothesis import Phase, settings

from holdfast.core import sharing
from holdfast.core.cluster import ClusterState
from holdfast.core.sharing import SharedMap
from holdfast.core.state import apply
from tests.unit.core.test_convergence import World

LOOK_EVERY = 7
"""Somebody looks at all of every so many states at once, which merges what they share; at the others in the end."""


@contextmanager
def copied_up_to(entries: int) -> Iterator[None]:
    small_max, sharing.SMALL_MAX = sharing.SMALL_MAX, entries
    try:
        yield
    finally:
        sharing.SMALL_MAX = small_max


def text(state: ClusterState) -> bytes:
    """All that the state holds, in the state's own order: placement goes by it."""
    return msgspec.json.encode(state, enc_hook=lambda value: value.merged())


class SharingWorld(World):
    """Folds what happened in it twice: with maps that share even one entry, and with plain ones."""

    def teardown(self) -> None:
        with copied_up_to(1 << 30):
            state, expected = ClusterState(), []
            for record in self.history.records:
                state = apply(state, record)
                expected.append(text(state))
        with copied_up_to(0):
            state, states = ClusterState(), []
            for number, record in enumerate(self.history.records):
                state = apply(state, record)
                states.append(state)
                if number % LOOK_EVERY == 0:
                    assert text(state) == expected[number]
        assert type(state.heads) is SharedMap
        assert [text(state) for state in states] == expected


SharingWorld.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, phases=set(Phase) - {Phase.explain}
)
TestSharedStates = SharingWorld.TestCase
