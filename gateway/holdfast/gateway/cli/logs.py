"""Where commands' own log messages go: never between the lines that a person reads."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from holdfast.store.log_files import rotate

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def quiet_libraries() -> None:
    """httpx tells of every request that it makes, as INFO."""
    logging.getLogger("httpx").setLevel(logging.WARNING)


def log_to_standard_error() -> None:
    """For processes whose standard error is their log."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)


@contextlib.contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Until the end of the block, all messages go to the end of a file."""
    rotate(path)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()
