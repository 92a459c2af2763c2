"""What others are told to reach a gateway or a replica by."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from holdfast.gateway.addresses import advertised, bracketed, local_url

FOUND = {socket.AF_INET: ["127.0.1.1", "10.0.0.7"], socket.AF_INET6: ["::1", "fd00::7"]}


@pytest.mark.parametrize(
    ("host", "told", "expected"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("::1", None, "[::1]"),
        ("0.0.0.0", None, "10.0.0.7"),
        ("", None, "10.0.0.7"),
        ("::", None, "[fd00::7]"),
        ("0.0.0.0", "gpu-7.example", "gpu-7.example"),
        ("::", "fd00::9", "[fd00::9]"),
    ],
)
def test_what_listens_on_any_address_is_reached_by_one_of_this_machine(
    host: str, told: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(name: str, port: None, family: socket.AddressFamily, kind: int) -> list[Any]:
        return [(family, kind, 6, "", (address, 0)) for address in FOUND[family]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert bracketed(advertised(host, told)) == expected


def test_a_machine_whose_name_resolves_to_nothing_is_reached_from_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object) -> list[Any]:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert advertised("0.0.0.0", None) == "127.0.0.1"


def test_local_urls_have_ipv6_addresses_in_brackets() -> None:
    assert local_url("::", 8000) == "http://[::1]:8000"
    assert local_url("0.0.0.0", 8000) == "http://127.0.0.1:8000"
