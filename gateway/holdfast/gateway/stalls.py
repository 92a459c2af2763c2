"""Streams that bring nothing while their replica's engine goes on with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from holdfast.core.barren import Barren
from holdfast.gateway.link_settings import LinkSettings

if TYPE_CHECKING:
    from holdfast.gateway.session import StreamRun

STALL_STEPS = 64
"""A stream stands still only while its engine makes at least so many steps."""

BARREN_STEPS = 128
"""So many steps an engine makes for nobody before a stream without its first token leaves it."""


class StallWatch:
    """What one link saw of its attempts at its last look."""

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self._marks: dict[int, tuple[int, float, int]] = {}
        self._barren = Barren()

    def beat(self, barren: Barren) -> None:
        """The replica tells whether its engine steps for nobody."""
        self._barren = barren

    def look(self, attempts: Mapping[int, StreamRun], step: int, now_s: float) -> list[tuple[int, StreamRun]]:
        """The attempts that stand still. `step` is the engine's last, `now_s` the loop's time."""
        marks = {}
        stalled: list[tuple[int, StreamRun]] = []
        for attempt, run in attempts.items():
            count = len(run.stream.accepted)
            mark = self._marks.get(attempt)
            if mark is None or mark[0] != count:
                mark = (count, now_s, step)
            marks[attempt] = mark
            if self._stalls(run, now_s - mark[1], step - mark[2]):
                stalled.append((attempt, run))
        self._marks = marks
        return stalled

    def _stalls(self, run: StreamRun, still_s: float, steps: int) -> bool:
        """Whether it should have brought something.

        A first token may take as long as prompts take to be read, and others before it to get theirs; unless nobody
        gets any, and nothing is read.
        """
        if not run.stream.admitted_now:
            return still_s > self._settings.admission_timeout_s
        limit_s = self._settings.stream_stall_timeout_s
        if run.stream.proven:
            return still_s > limit_s and steps >= STALL_STEPS
        return min(still_s, self._barren.for_s) > limit_s and self._barren.steps >= BARREN_STEPS
