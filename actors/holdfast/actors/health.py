"""How a replica is, in its own words: what its system port answers, and what it reports to its node."""

from __future__ import annotations


class ReplicaHealth:
    """What is known of a replica inside its process.

    `reasons` is empty exactly when it can serve. The process being able to answer at all is what makes it live.
    """

    def __init__(self) -> None:
        self.loading = True
        self.draining = False
        self._failing: dict[str, str] = {}

    @property
    def healthy(self) -> bool:
        """Whether it can serve."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why it can't serve, a sentence each: it loads, it drains, or a check fails."""
        found = ["the engine is being loaded"] if self.loading else []
        if self.draining:
            found.append("the replica is draining")
        return found + [f"{kind}: {message}" for kind, message in self._failing.items()]

    def failed(self, kind: str, message: str) -> None:
        """A check of this kind fails."""
        self._failing[kind] = message

    def passed(self, kind: str) -> None:
        """A check of this kind passes."""
        self._failing.pop(kind, None)
