"""How much a checker judged in a run: one that judges nothing finds nothing, whatever breaks."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History

Judged = dict[str, int]
"""Of each kind of thing that a checker judges, how many. Only what could have been found wrong counts: what something
excuses does not. It has all its keys from the beginning: a kind that nobody declared is a `KeyError`.
"""

Checker = Callable[[History, Judged], list[Violation]]
"""What a run broke of one invariant; it adds to what was judged."""


class Verdict(msgspec.Struct, frozen=True):
    """What is to be said of a run: all that it broke, and by checker how much of what was judged."""

    violations: list[Violation]
    judged: dict[str, Judged]
