"""What gateways ask each other over HTTP, and what they make of answers that are none."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.gateway import peers
from holdfast.gateway.peers import FORWARDED, Answer, Peers, ask_by_httpx
from holdfast.gateway.requests import RequestList
from holdfast.gateway.telling import path_of
from tests.contract.helpers import Certificates
from tests.unit.gateway.cancelling import Gateways, begin, cancelled, listed, running, site_of
from tests.unit.gateway.client import ask
from tests.unit.support.replicas import PATIENCE_S, Site, eventually


class Server:
    """Answers every call with 200 and `body`; `heard` are the heads of the calls."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.body = b"{}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(self.body), self.body))
        await writer.drain()
        writer.close()


@pytest.fixture
async def called(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Server, str]]:
    monkeypatch.setattr(peers, "CALL_TIMEOUT_S", PATIENCE_S)
    server = Server()
    async with await asyncio.start_server(server.answer, "127.0.0.1", 0) as listening:
        yield server, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site() as site:
        yield site


@pytest.mark.parametrize("key", [b"Bearer sk-1", "Bearer clé-ключ".encode(), b"Bearer \xe9\xff"])
async def test_a_clients_key_is_passed_on_as_it_came(called: tuple[Server, str], key: bytes) -> None:
    server, url = called
    answer = await Peers("a", lambda: {"b": url}, ask_by_httpx).ask("b", "DELETE", path_of("r"), key)
    assert answer == Answer(200, b"{}")
    assert b"\r\nauthorization: " + key + b"\r\n" in server.heard[0]


async def test_a_key_goes_to_no_server_whose_certificate_nobody_has_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.certificate, certificates.key)
    server = Server()
    async with await asyncio.start_server(server.answer, "127.0.0.1", 0, ssl=context) as listening:
        url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await ask_by_httpx("GET", url, {"authorization": "Bearer sk-1"}, 10.0)
        assert server.heard == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
        assert await ask_by_httpx("GET", url, {"authorization": "Bearer sk-1"}, 10.0) == Answer(200, b"{}")


@pytest.mark.parametrize("id_", [".", "..", "../../health", "a/../b", "%2e%2e"])
async def test_an_id_arrives_as_it_is_whatever_paths_mean_by_it(called: tuple[Server, str], id_: str) -> None:
    server, url = called
    await Peers("a", lambda: {"b": url}, ask_by_httpx).ask("b", "DELETE", path_of(id_, "mode=stop"), None)
    assert server.heard[0].split(b"\r\n")[0] == f"DELETE {path_of(id_, 'mode=stop')} HTTP/1.1".encode()
    assert "/" not in path_of(id_).removeprefix("/v1/requests/")


@pytest.mark.parametrize("url", ["http://[::1", "http://" + "x" * 70_000])
async def test_an_address_that_is_none_is_a_gateway_that_does_not_answer(url: str) -> None:
    assert await Peers("a", lambda: {"b": url}, ask_by_httpx).ask("b", "GET", path_of("r"), None) is None


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"object":"list"}', b"\xff", b"[" * 100_000])
def test_an_answer_that_makes_no_sense_says_nothing(body: bytes) -> None:
    assert Answer(200, body).read(RequestList) is None


@pytest.mark.memory_network
async def test_somebody_elses_server_at_a_gateways_address_is_no_gateway(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        g = await gateways.start("g")
        await gateways.start("h")

        async def other(*_call: object) -> Answer:
            return Answer(200, b"<html>It works!</html>")

        monkeypatch.setattr(g.kinship._peers, "_ask", other)
        child = begin(g, "child", parent="elsewhere")
        await running(g, "child")
        assert (await ask(g, "/v1/requests", method="GET")).json["unreached"] == ["h"]
        assert (await cancelled(g, "never")).status == 404
        assert (await cancelled(g, "child")).status == 200
        await child.answer()


@pytest.mark.memory_network
async def test_ids_that_no_request_can_have_are_unknown_and_nobody_is_asked(site: Site) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        g = await gateways.start("g")
        await gateways.start("h")
        for path in ("/v1/requests/", "/v1/requests/a%20b", "/v1/requests/%C3%A9", f"/v1/requests/{'x' * 129}"):
            told = await ask(g, f"{path}?told=request", headers={FORWARDED: "h"}, method="DELETE")
            asked = await ask(g, path, method="DELETE")
            assert (told.status, asked.status, asked.error["code"]) == (404, 404, "request_not_found")
        assert gateways.asked == []
        assert len(g.requests._remembered) == 0


@pytest.mark.memory_network
async def test_who_only_calls_itself_a_gateway_is_not_told_of_a_requests_end(site: Site) -> None:
    await site_of(site)
    async with Gateways(site) as gateways:
        g = await gateways.start("g")
        await gateways.start("h")
        pending = begin(g, "mine")
        await running(g, "mine")
        for name in ("h", "nobody", "x" * 1000):
            answer = await ask(g, "/v1/requests/mine?adopt=1", headers={FORWARDED: name}, method="POST")
            assert answer.status == 200
        (request,) = g.requests.find(None, "mine")
        assert request.elsewhere == {"h"}
        pending.leave()
        await pending.answer()
        await eventually(lambda: any(call[:2] == ("g", "h") for call in gateways.asked))
        assert {call[1] for call in gateways.asked} == {"h"}
        assert await listed(g) == []
