"""Calls that block, in threads that hold up nothing: not the event loop, and not the end of the process either.

The event loop's own executor waits for its threads when the loop ends, for ever where one hangs in a driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from holdfast.core.errors import in_words

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """What `call` returns or raises, in a thread of its own. Who is cancelled leaves the thread to itself."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # without an error there is a result

    def work() -> None:
        result: T | None = None
        failure: Exception | None = None
        try:
            result = call()
        except Exception as error:
            failure = error
        except BaseException as error:
            # One that ends a program (`SystemExit`) ends a thread, and whoever waits for it would wait for ever.
            failure = RuntimeError(in_words(error))
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, daemon=True).start()
    return await done
