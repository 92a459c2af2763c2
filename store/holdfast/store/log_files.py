"""Log files of child processes: kept from growing for ever, and read for their last words."""

from __future__ import annotations

from pathlib import Path

LOG_BYTES_MAX = 10 << 20
"""A log file that is longer than this, in bytes, when its process starts is put aside as `NAME.log.1`."""

TAIL_BYTES = 4096


def rotate(path: Path) -> None:
    """Put a long log aside, in the place of the one that was put aside before."""
    if path.is_file() and path.stat().st_size > LOG_BYTES_MAX:
        path.replace(path.with_name(f"{path.name}.1"))


def tail(path: Path) -> str:
    """The end of a log file; in parentheses why there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return log.read().decode(errors="replace").strip() or "(empty)"
    except OSError as error:
        return f"(can't be read: {error.strerror})"


def last_line(path: Path) -> str:
    """The last line of a log file that says something."""
    return tail(path).splitlines()[-1].strip()
