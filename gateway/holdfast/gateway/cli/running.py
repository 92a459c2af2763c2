"""How every command runs, and how it ends: one line for what went wrong, an exit code, never a traceback."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from holdfast.core.errors import HoldfastError, LeasesUnavailable, LogUnavailable, Misuse

EXIT_FAILED = 1
EXIT_MISUSE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_PIPE = 128 + signal.SIGPIPE

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where a disk has no more room."""

_T = TypeVar("_T")


def execute(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a command's coroutine to its end. Ends the process with one line on standard error when it fails."""
    import uvloop

    return guarded(lambda: uvloop.run(work))


def guarded(work: Callable[[], _T]) -> _T:
    """Call `work`; what it raises on purpose becomes one line and an exit code."""
    try:
        return work()
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read our output has enough of it. Nothing may be flushed into that pipe any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_PIPE) from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        # What is buffered can't be written either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"holdfast: what there is to write can't be written: {error.strerror}", file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None
    except HoldfastError as error:
        fail(error)
    except BaseExceptionGroup as group:
        known = first_known(group)
        if known is None:
            raise
        fail(known)


def fail(error: HoldfastError) -> NoReturn:
    """Say what was wrong, and end with the exit code for it."""
    print(f"holdfast: {one_line(str(error))}", file=sys.stderr)
    raise SystemExit(exit_code(error)) from None


def exit_code(error: HoldfastError) -> int:
    """2 for the caller's mistakes and for servers that can't be reached, 1 for all else."""
    return EXIT_MISUSE if isinstance(error, Misuse | LogUnavailable | LeasesUnavailable) else EXIT_FAILED


def first_known(group: BaseExceptionGroup[BaseException]) -> HoldfastError | None:
    """The first error raised on purpose in a group that holds nothing else."""
    known: HoldfastError | None = None
    for member in group.exceptions:
        error = first_known(member) or member if isinstance(member, BaseExceptionGroup) else member
        if isinstance(error, HoldfastError):
            known = known or error
        elif not isinstance(error, asyncio.CancelledError):
            return None
    return known


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())


def plain(text: str) -> str:
    """The text in one line, without what a terminal would take for a command: engines' exceptions may have any."""
    return "".join(letter if letter.isprintable() else "?" for letter in one_line(text))


def stop_on_signals(
    stop: Callable[[], None], at_once: Callable[[int], None], hurry: tuple[int, Callable[[], None]] | None = None
) -> None:
    """SIGINT, SIGTERM and SIGHUP call `stop`; any of them again calls `at_once` with the exit code for it, which is 128
    and the signal's number. `hurry`: a signal that calls `stop` too, whether or not it was called, and then this.
    Call within a running loop.
    """
    loop = asyncio.get_running_loop()
    told = False

    def on_signal(number: int) -> None:
        nonlocal told
        if told:
            at_once(128 + number)
        told = True
        stop()

    def on_hurry(call: Callable[[], None]) -> None:
        nonlocal told
        told = True
        stop()
        call()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal, number)
    if hurry is not None:
        loop.add_signal_handler(hurry[0], on_hurry, hurry[1])
