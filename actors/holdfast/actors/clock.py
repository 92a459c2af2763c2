"""The real clock."""

from __future__ import annotations

from datetime import UTC, datetime


class SystemClock:
    """As `Clock`: this machine's wall clock, in UTC."""

    def now(self) -> datetime:
        """The time now."""
        return datetime.now(UTC)
