"""What a gateway takes from the machine that it runs on: time, chance, and an end to connections that nobody reads.

The defaults are the real ones. A simulated machine brings its own, and the same gateway runs on it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import Scope

from holdfast.actors.clock import SystemClock
from holdfast.core.ports import Clock
from holdfast.gateway.cutting import cut_client
from holdfast.gateway.peers import Ask, ask_by_httpx

Entropy = Callable[[int], bytes]
"""Gives so many random bytes, which nobody can guess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine's time and chance.

    `clock` is for what people see, `monotonic_s` measures durations more finely than a loop's own time does.
    `entropy` is for ids that must not be guessed, `rng` for jitter and for the choice of a replica. `cut_client`
    resets the connection that an exchange came on, `ask` calls another gateway.
    """

    clock: Clock = field(default_factory=SystemClock)
    monotonic_s: Callable[[], float] = time.monotonic
    entropy: Entropy = os.urandom
    rng: random.Random = field(default_factory=random.Random)
    cut_client: Callable[[Scope], None] = cut_client
    ask: Ask = ask_by_httpx
