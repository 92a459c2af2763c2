"""Spares a long-lived process the looks of the garbage collector through what it keeps for good anyway.

The modules of a gateway are 60,000 objects, those of torch several times as many. Python's collector looks through all
of them whenever as many again have survived, and the process stands still for that: 50 ms on a slow machine, in the
middle of streams and rejections.
"""

from __future__ import annotations

import gc


def keep_for_good() -> None:
    """What there is now is no garbage, and is not looked through again. Call it when all is loaded, once."""
    gc.collect()
    gc.freeze()
