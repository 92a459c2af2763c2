"""A plan's parts, as people name them: `3` is a fault, `17` a request, `op0` an operation, `cancel2` a cancellation.

`change1` is a change of thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from holdfast.core.errors import Misuse
from holdfast.simulations.plan import Fault, Plan
from holdfast.simulations.work.items import Ask, Cancel, Change, Operation

PARTS: Final = ("faults", "work")
"""The plan's lists from which items may be left out."""

NONE: Final = "none"
"""Stands for no items at all."""

Item = Fault | Ask | Operation | Cancel | Change


def label(item: Item) -> str:
    """The item's name, unique within its part."""
    if isinstance(item, Cancel):
        return f"cancel{item.number}"
    if isinstance(item, Change):
        return f"change{item.number}"
    return f"op{item.number}" if isinstance(item, Operation) else str(item.number)


def described(item: Item) -> str:
    """The item in a line."""
    if isinstance(item, Fault):
        lasts = f" for {item.lasts_s:.3f} s" if item.lasts_s else ""
        return f"fault {label(item)}: {item.kind} at {item.at_s:.3f} s{lasts}"
    if isinstance(item, Operation):
        return f"operation {label(item)}: {item.kind} at {item.at_s:.3f} s"
    if isinstance(item, Cancel):
        return f"cancellation {label(item)}: of request {item.ask} at {item.at_s:.3f} s ({item.mode})"
    if isinstance(item, Change):
        return f"change {label(item)}: of {item.model}'s {item.threshold} at {item.at_s:.3f} s"
    return f"request {label(item)}: asks {item.model} at {item.at_s:.3f} s"


def items(plan: Plan, part: str) -> Sequence[Item]:
    """The plan's items of a part."""
    found: Sequence[Item] = getattr(plan, part)
    return found


def keep(plan: Plan, part: str, kept: Sequence[Any]) -> Plan:
    """The plan with only these items of a part."""
    return msgspec.structs.replace(plan, **{part: tuple(kept)})


def keep_named(plan: Plan, part: str, text: str) -> Plan:
    """The plan with only the items of a part that are named, by commas. Raises `Misuse` for one that is not there."""
    there = {label(item): item for item in items(plan, part)}
    wanted = {name.strip() for name in text.split(",")} if text != NONE else set()
    unknown = sorted(wanted - there.keys())
    if unknown:
        known = ", ".join(there) or NONE
        raise Misuse(f"--only-{part} {text}: seed {plan.seed} has no {', '.join(unknown)} there; it has {known}")
    return keep(plan, part, [item for name, item in there.items() if name in wanted])


def options(whole: Plan, small: Plan) -> list[str]:
    """The options of `holdfast sim replay` that make the small plan of the whole one."""
    made = []
    for part in PARTS:
        kept = items(small, part)
        if len(kept) < len(items(whole, part)):
            made += [f"--only-{part}", ",".join(label(item) for item in kept) or NONE]
    return [*made, "--lasts-s", f"{small.lasts_s:g}"] if small.lasts_s < whole.lasts_s else made


def size(plan: Plan) -> str:
    """How much there is in a plan, for people."""
    return f"{len(plan.faults)} faults, {len(plan.work)} pieces of work, {plan.lasts_s:g} virtual s"
