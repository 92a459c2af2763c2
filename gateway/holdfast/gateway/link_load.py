"""How busy a replica is, as its gateway can know it, and whether that is too much for new streams."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import msgspec

from holdfast.core.admission import Reason, busy, in_flight_limit, prefill_limit
from holdfast.core.pace import Pace
from holdfast.core.requests import EngineInfo, EngineLoad
from holdfast.core.thresholds import Thresholds

if TYPE_CHECKING:
    from holdfast.gateway.session import StreamRun


class LinkLoad:
    """What the replica reported last. `others` are streams there that are not this gateway's.

    Some of our own may be on the way there, or back: so they are counted here, and only the rest is taken from reports.
    So are prompts that it took in since its last report, until they bring a token: a burst comes between two reports.
    """

    __slots__ = (
        "_busy",
        "_in_flight_max",
        "_info",
        "_prefill_max",
        "_reported",
        "_taken_in",
        "_taken_in_tokens",
        "_thresholds",
        "kv_used",
        "others",
        "pace",
    )

    def __init__(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self._info: EngineInfo | None = None
        self.forget()

    def forget(self) -> None:
        """The replica is out of sight."""
        self._reported: EngineLoad | None = None
        self._busy: Reason | None = None
        self._in_flight_max = sys.maxsize
        self._prefill_max = math.inf
        self._taken_in: list[tuple[StreamRun, int]] = []
        self._taken_in_tokens = 0
        self.kv_used = 0.0
        self.others = 0
        self.pace = Pace()

    def introduced(self, info: EngineInfo) -> None:
        """What the replica's engine is like."""
        self._info = info

    def reported(self, load: EngineLoad, own: int, pace: Pace) -> None:
        """A heartbeat came while so many of our own streams were there."""
        self._reported = load
        self._taken_in, self._taken_in_tokens = [], 0  # the report came behind the news of them
        self.pace = pace
        self.others = max(0, load.running + load.waiting - own)
        self.kv_used = load.kv_blocks_used / max(1, load.kv_blocks)
        self._judge()

    def taken_in(self, run: StreamRun, prompt_tokens: int) -> None:
        """The engine took in one of our streams: it has that much more to read than its report says."""
        if self._reported is None:
            return
        self._taken_in.append((run, prompt_tokens))
        self._taken_in_tokens += prompt_tokens
        if self._reported.prefill_tokens_waiting + self._taken_in_tokens > self._prefill_max:
            self._judge()

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """From when on it is too busy, from now on."""
        self._thresholds = thresholds
        self._judge()

    def spare(self, own: int) -> int:
        """How many new streams it may get, with so many of our own there; it may have more already than it should."""
        if self._busy is Reason.PREFILL_TOKENS and self._taken_in:
            self._judge()
        return 0 if self._busy is not None else max(0, self._in_flight_max - own - self.others)

    def why_busy(self, own: int) -> Reason | None:
        """Why it gets no new streams, if that is so because of its load."""
        return self._busy or (None if self.spare(own) else Reason.IN_FLIGHT)

    @property
    def others_end_per_s(self) -> float:
        """How many of others' streams end there per second, for each gateway that wants their places, us among them."""
        return self.others / self.pace.stay_s / (self.pace.gateways + 1) if self.pace.stay_s > 0 else 0.0

    def _judge(self) -> None:
        if self._reported is not None and self._info is not None:
            unread = sum(tokens for run, tokens in self._taken_in if run.link is not None and not run.stream.proven)
            waiting = self._reported.prefill_tokens_waiting + unread
            load = msgspec.structs.replace(self._reported, prefill_tokens_waiting=waiting) if unread else self._reported
            self._busy = busy(load, self._info, self._thresholds)
            self._in_flight_max = in_flight_limit(self._info, self._thresholds)
            self._prefill_max = prefill_limit(self._info, self._thresholds)
