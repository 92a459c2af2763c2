"""How replicas' processes end: which ends are their own doing, and what is said of them.

An exit code is the process's own, and so are the signals that a process gets for what it does itself: `abort()` in a
library, a bad access to memory, an instruction that isn't one. Any other signal comes from outside.
"""

from __future__ import annotations

from typing import Final

from holdfast.core.cluster import ReplicaState
from holdfast.core.events import ReplicaExited

OWN_SIGNALS: Final = frozenset({"SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGSYS", "SIGTRAP"})
"""Signals that a process gets for what it did itself: it crashed."""


def ended_by_itself(fact: ReplicaExited) -> bool:
    """Whether the process ended by its own doing, and nobody had told it to."""
    return not fact.expected and (fact.exit_code is not None or fact.signal in OWN_SIGNALS)


def how_it_ended(replica: ReplicaState, fact: ReplicaExited) -> str:
    """The end in words: the process's last ones where there are any, its signal, and where to look for more."""
    if fact.signal in OWN_SIGNALS:
        crash = f"signal {fact.signal}: see the end of logs/{replica.id}.log on {replica.node}"
        return f"{fact.message} ({crash})" if fact.message else crash
    if fact.message:
        return fact.message
    if fact.signal == "SIGKILL":
        return "signal SIGKILL: somebody sent it, or the kernel, for want of memory"
    return f"signal {fact.signal}" if fact.signal else f"exit code {fact.exit_code}"
