"""Runs a large simulated cluster in a process of its own, which takes its gigabytes along when it ends."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection

from holdfast.core.errors import WorldFailure
from holdfast.simulations.scale.scale import ScaleReport, measure


def run_scale(
    nodes: int, replicas: int, gateways: int, progress: Callable[[str], object] = lambda _what: None
) -> ScaleReport:
    """Start a cluster of this size, let it stand, take a tenth of its nodes, and measure. `progress` hears of phases.

    Raises `WorldFailure` when the cluster does not come to what it should, or when the memory does not suffice.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(theirs, nodes, replicas, gateways), daemon=True)
    process.start()
    theirs.close()
    try:
        while not isinstance(told := ours.recv(), ScaleReport):
            if isinstance(told, Exception):
                raise WorldFailure(f"a cluster of {nodes} nodes: {told}") from told
            progress(told)
        return told
    except EOFError:
        process.join()
        raise WorldFailure(f"a cluster of {nodes} nodes: its process ended with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


def _run(to: Connection, nodes: int, replicas: int, gateways: int) -> None:
    try:
        to.send(measure(nodes, replicas, gateways, to.send))
    except Exception as error:
        to.send(RuntimeError(f"{type(error).__name__}: {error}"))
    # What was simulated is not taken apart: with millions of objects that takes longer than all the rest.
    os._exit(0)
