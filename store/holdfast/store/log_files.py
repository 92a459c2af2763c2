"""Log files of child processes: kept from growing for ever, and read for their last words."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

LOG_BYTES_MAX = 10 << 20
"""A log file that is longer than this, in bytes, is put aside as `NAME.log.1`: when its process starts, and while it
runs."""

LOOK_S = 5.0
"""So often, in seconds, the logs of running processes are looked at."""

TAIL_BYTES = 4096

logger = logging.getLogger(__name__)


@asynccontextmanager
async def bounded(logs: Callable[[], Iterable[Path]]) -> AsyncIterator[None]:
    """Within the block these logs are put aside while their processes write on. Only one process may do that to a log.

    Whoever writes has to have opened it for appending.
    """
    bounding = asyncio.create_task(_bound(logs))
    try:
        yield
    finally:
        bounding.cancel()
        await asyncio.wait([bounding])
        if not bounding.cancelled():
            bounding.result()


async def _bound(logs: Callable[[], Iterable[Path]]) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        for path in list(logs()):
            try:
                await asyncio.to_thread(put_aside, path)
            except OSError as error:
                logger.warning("%s can't be kept from growing: %s", path, error)


def put_aside(path: Path) -> None:
    """Put a long log aside while it is written: what comes between copying and cutting is lost. Raises `OSError`.

    Where there is no room for the copy, the log is cut all the same.
    """
    if not path.is_file() or path.stat().st_size <= LOG_BYTES_MAX:
        return
    try:
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    finally:
        os.truncate(path, 0)


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
