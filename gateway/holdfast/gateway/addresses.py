"""Addresses to listen on: whether one can be had, and how to reach it."""

from __future__ import annotations

import errno

from holdfast.core.errors import Misuse
from holdfast.store.embedded import try_to_bind

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def check_address(host: str, port: int) -> None:
    """Whether a server can listen there now. Raises `Misuse` saying what to do when it can't."""
    try:
        try_to_bind(host, port)
    except OSError as error:
        raise Misuse(_explain(error, host, port)) from error


def local_url(host: str, port: int) -> str:
    """The URL by which this machine reaches what listens on `host`: an address of its own stands for "any"."""
    host = _ANY.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what uses it, or choose another with --port"
    return f"can't listen on {host}:{port} ({error.strerror}): choose another address with --host and --port"
