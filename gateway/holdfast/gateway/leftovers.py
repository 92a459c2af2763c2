"""Finds processes that an `up` left behind, by a mark in their environment.

Replicas are in sessions of their own and outlive their node for a while, so that streams can end. One that is
frozen can't end by itself. All descendants of an `up` inherit the mark, which names its data directory, so the
`up` that holds that directory's lock may end whatever else carries it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

MARK = "HOLDFAST_UP_DATA_DIR"
GONE_POLL_S = 0.02


def find_marked(data_dir: Path) -> list[int]:
    """Our own processes that carry the mark of this data directory, except this one."""
    mark = f"{MARK}={data_dir}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # A process that ends meanwhile, or is another user's, can't be read; it is none of ours.
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def kill_marked(data_dir: Path) -> list[int]:
    """End them now (SIGKILL); their process ids."""
    found = find_marked(data_dir)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


async def sweep(data_dir: Path, *, grace_s: float, kill_s: float = 1.0) -> None:
    """Wait for them to end by themselves for `grace_s`, then end them, and wait for that for `kill_s`."""
    if await _gone(data_dir, grace_s):
        return
    kill_marked(data_dir)
    await _gone(data_dir, kill_s)


async def _gone(data_dir: Path, within_s: float) -> bool:
    deadline_s = asyncio.get_running_loop().time() + within_s
    while find_marked(data_dir):
        if asyncio.get_running_loop().time() >= deadline_s:
            return False
        await asyncio.sleep(GONE_POLL_S)
    return True
