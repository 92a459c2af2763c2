"""Addresses to listen on: whether one can be had, and how to reach it."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

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
    return f"http://{bracketed(_ANY.get(host, host))}:{port}"


def bracketed(host: str) -> str:
    """The host as it stands before a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def advertised(host: str, advertise_host: str | None) -> str:
    """The host by which other machines reach what listens on `host`, unless they are to be told another one.

    For "any address" that is what this machine's name resolves to, preferably not to a loopback address.
    """
    if advertise_host:
        return advertise_host
    if host not in _ANY:
        return host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = [str(item[4][0]) for item in socket.getaddrinfo(socket.gethostname(), None, family, socket.SOCK_STREAM)]
    except OSError:
        return _ANY[host]
    return next((address for address in found if not ip_address(address).is_loopback), _ANY[host])


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what uses it, or choose another with --port"
    return f"can't listen on {bracketed(host)}:{port} ({error.strerror}): choose another address with --host and --port"
