"""Tells the lease servers that a member's process has ended, for whoever saw it end: its supervisor.

Otherwise everybody waits for the TTL. The lease is revoked, and with it goes the leader key, if it hung there: the
next leader is elected at once. Keys that are missing prove little (`LeaseEvidence`), so a note says why: the member's
lease key with `ENDED` before it, on a short lease of its own. Who leads then gives the member up without waiting.

Only the lease of that very process is ended: its key's value names host and process, and `gone` decides on these.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from holdfast.actors.identity import ENDED, Holder, parse_holder
from holdfast.core.ports import KeyValue, Leases

NOTE_TTL_S = 60.0
"""For how long a leader, which looks every second, can still learn of it, in seconds."""


async def end_leases(leases: Leases, role: str, name: str, gone: Callable[[Holder], bool]) -> list[Holder]:
    """End the leases of this member's processes that are `gone`; those. Raises `LeasesUnavailable`.

    Each step does no harm when it is done twice, or is the last one: the TTL does the rest.
    """
    ended = []
    for item in (await leases.list(f"{role}s/{name}/")).items:
        holder = parse_holder(item.value)
        if holder is not None and (holder.role, holder.holder) == (role, name) and gone(holder):
            await _end(leases, item, holder)
            ended.append(holder)
    return ended


async def _end(leases: Leases, item: KeyValue, holder: Holder) -> None:
    note = msgspec.json.encode({"holder": holder.holder, "role": ENDED, "host": holder.host, "pid": holder.pid})
    await leases.put(f"{ENDED}/{item.key}", note, (await leases.grant(NOTE_TTL_S)).id)
    await leases.revoke(item.lease)
