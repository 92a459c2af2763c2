"""The leases on etcd while endpoints, connections, tokens and history fail, and how they get in."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.errors import IncompatibleServer, InvalidConfig, KeyTaken, LeaseGone, LeasesUnavailable
from holdfast.core.ports import KeyChange
from holdfast.store.embedded import ChildProcess, etcd_server, free_port
from holdfast.store.etcd import EtcdLeases
from holdfast.store.etcd_gateway import EtcdGateway, encoded
from holdfast.store.settings import EtcdSettings
from tests.contract.helpers import Certificates, Reading, eventually
from tests.contract.proxy import TcpProxy
from tests.contract.worlds import compact, etcd_settings

DEAD = "http://127.0.0.1:9"
SECRET = "s3cret-of-the-test"
ROOT_SECRET = "r00t-of-the-test"


@asynccontextmanager
async def opened(settings: EtcdSettings) -> AsyncIterator[EtcdLeases]:
    leases = await EtcdLeases.open(settings)
    try:
        yield leases
    finally:
        await leases.close()


def flat(batches: Sequence[Sequence[KeyChange]]) -> list[tuple[str, bytes | None]]:
    return [(change.key, change.value) for batch in batches for change in batch]


async def test_a_dead_endpoint_first_is_passed_over(etcd_url: str) -> None:
    async with opened(etcd_settings(DEAD, etcd_url)) as leases:
        assert (await leases.status()).url == etcd_url


async def test_a_half_open_endpoint_is_passed_over_within_one_try(etcd_url: str, stack: AsyncExitStack) -> None:
    first = await stack.enter_async_context(TcpProxy(etcd_url))
    second = await stack.enter_async_context(TcpProxy(etcd_url))
    leases = await stack.enter_async_context(opened(etcd_settings(first.url, second.url)))
    lease = await leases.grant(60)
    assert second.accepted == 0
    first.freeze()
    assert await leases.keep_alive(lease.id) > 0
    assert first.withheld == 1
    assert (await leases.status()).url == second.url


async def test_when_no_endpoint_answers_all_are_named(etcd_url: str) -> None:
    async with TcpProxy(etcd_url) as proxy, opened(etcd_settings(proxy.url, DEAD, request_timeout_s=4)) as leases:
        proxy.refusing = True
        proxy.cut()
        with pytest.raises(LeasesUnavailable) as caught:
            await leases.list("")
        assert proxy.url in str(caught.value)
        assert DEAD in str(caught.value)
        assert not leases.connected
        proxy.refusing = False
        await leases.list("")
        assert leases.connected


async def test_opening_says_that_nobody_answers() -> None:
    with pytest.raises(LeasesUnavailable, match=DEAD):
        await EtcdLeases.open(etcd_settings(DEAD, request_timeout_s=1))


async def test_a_frozen_server_is_unavailable_until_it_thaws(tmp_path: Path) -> None:
    async with etcd_server(tmp_path) as server, opened(etcd_settings(server.url, request_timeout_s=2)) as leases:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(LeasesUnavailable):
            await leases.list("")
        os.kill(server.pid, signal.SIGCONT)
        await leases.list("")


async def test_a_create_whose_answer_is_lost_is_not_taken_for_anothers(etcd_url: str) -> None:
    async with TcpProxy(etcd_url) as proxy:
        settings = etcd_settings(proxy.url)
        witness_settings = settings.model_copy(update={"endpoints": (etcd_url,)})
        async with opened(settings) as leases, opened(witness_settings) as witness:
            lease = (await leases.grant(60)).id
            proxy.hold_answers()
            revision = await leases.create("leader", b"me", lease)
            (item,) = (await witness.list("leader")).items
            assert (item.create_revision, item.value, item.lease) == (revision, b"me", lease)
            with pytest.raises(KeyTaken):
                await leases.create("leader", b"me", lease)


async def test_a_delete_whose_answer_is_lost_counts(etcd_url: str) -> None:
    async with TcpProxy(etcd_url) as proxy, opened(etcd_settings(proxy.url)) as leases:
        revision = await leases.create("leader", b"me", (await leases.grant(60)).id)
        proxy.hold_answers()
        assert await leases.delete("leader", create_revision=revision)
        assert (await leases.list("leader")).items == ()


async def test_connections_that_died_while_idle_cost_one_try_and_not_one_each(etcd_url: str) -> None:
    async with TcpProxy(etcd_url) as proxy, opened(etcd_settings(proxy.url)) as leases:
        await asyncio.gather(*(leases.list("") for _ in range(8)))
        proxy.freeze()
        await leases.list("")
        assert proxy.withheld == 1


async def test_a_grant_whose_answer_is_lost_leaves_no_second_lease(etcd_url: str) -> None:
    async with TcpProxy(etcd_url) as proxy, opened(etcd_settings(proxy.url)) as leases:
        before = {info.id for info in await leases.inspect_all()}
        proxy.hold_answers()
        lease = await leases.grant(60)
        assert {info.id for info in await leases.inspect_all()} - before == {lease.id}
        assert lease.ttl_s == 60
        await leases.revoke(lease.id)


async def test_a_silent_watch_is_opened_again_elsewhere(etcd_url: str, stack: AsyncExitStack) -> None:
    first = await stack.enter_async_context(TcpProxy(etcd_url))
    second = await stack.enter_async_context(TcpProxy(etcd_url))
    settings = etcd_settings(first.url, second.url)
    leases = await stack.enter_async_context(opened(settings))
    witness = await stack.enter_async_context(opened(settings.model_copy(update={"endpoints": (etcd_url,)})))
    lease = (await witness.grant(60)).id
    after = await witness.put("k", b"0", lease)
    async with Reading(leases.watch("k", after=after)) as reading:
        await witness.put("k", b"1", lease)
        await reading.count(1)
        first.freeze()
        await witness.put("k", b"2", lease)
        await reading.until(lambda batches: len(flat(batches)) == 2)
    assert flat(reading.items) == [("k", b"1"), ("k", b"2")]
    assert second.accepted > 0


async def test_an_idle_watch_is_opened_again_and_tells_nothing_twice(etcd_url: str) -> None:
    async with TcpProxy(etcd_url) as proxy, opened(etcd_settings(proxy.url, watch_silence_s=0.1)) as leases:
        lease = (await leases.grant(60)).id
        after = (await leases.list("")).revision
        async with Reading(leases.watch("", after=after)) as reading:
            await leases.put("k", b"1", lease)
            await reading.count(1)
            opened_before = proxy.accepted
            await eventually(lambda: proxy.accepted >= opened_before + 3)
            await leases.put("k", b"2", lease)
            await reading.until(lambda batches: flat(batches)[-1] == ("k", b"2"))
        assert flat(reading.items) == [("k", b"1"), ("k", b"2")]


async def test_a_watch_cut_off_during_a_compaction_tells_the_difference(tmp_path: Path, stack: AsyncExitStack) -> None:
    server = await stack.enter_async_context(etcd_server(tmp_path))
    proxy = await stack.enter_async_context(TcpProxy(server.url))
    settings = etcd_settings(proxy.url)
    leases = await stack.enter_async_context(opened(settings))
    direct = settings.model_copy(update={"endpoints": (server.url,)})
    witness = await stack.enter_async_context(opened(direct))
    lease = (await witness.grant(60)).id
    known = await witness.put("n/known", b"1", lease)
    after = await witness.put("n/kept", b"1", lease)
    async with Reading(leases.watch("n/", after=after)) as reading:
        told = await witness.put("n/told", b"1", lease)
        await reading.count(1)
        proxy.refusing = True
        proxy.cut()
        await witness.delete("n/known", create_revision=known)
        await witness.delete("n/told", create_revision=told)
        await witness.put("n/fleeting", b"1", lease)
        await witness.delete("n/fleeting", create_revision=(await witness.list("n/fleeting")).items[0].create_revision)
        await witness.put("n/new", b"1", lease)
        await compact(EtcdGateway(direct))
        proxy.refusing = False
        await reading.count(2)
        await witness.put("n/new", b"2", lease)
        await reading.until(lambda batches: flat(batches)[-1] == ("n/new", b"2"))
    assert flat(reading.items[1:2]) == [("n/new", b"1"), ("n/known", None), ("n/told", None)]
    assert flat(reading.items[2:]) == [("n/new", b"2")]


async def test_a_deletion_at_the_very_revision_that_was_compacted_is_told(
    tmp_path: Path, stack: AsyncExitStack
) -> None:
    # etcd before 3.5.18 keeps it from a watch that starts there (issue 19179).
    server = await stack.enter_async_context(etcd_server(tmp_path))
    proxy = await stack.enter_async_context(TcpProxy(server.url))
    settings = etcd_settings(proxy.url)
    leases = await stack.enter_async_context(opened(settings))
    direct = settings.model_copy(update={"endpoints": (server.url,)})
    witness = await stack.enter_async_context(opened(direct))
    lease = (await witness.grant(60)).id
    after = (await witness.list("")).revision
    async with Reading(leases.watch("", after=after)) as reading:
        created = await witness.put("k", b"1", lease)
        await reading.count(1)
        proxy.refusing = True
        proxy.cut()
        await witness.delete("k", create_revision=created)
        await compact(EtcdGateway(direct))
        proxy.refusing = False
        await reading.until(lambda batches: flat(batches) == [("k", b"1"), ("k", None)])


async def test_a_watch_over_a_server_that_lost_its_history_tells_the_difference(
    tmp_path: Path, stack: AsyncExitStack
) -> None:
    server = await stack.enter_async_context(etcd_server(tmp_path / "old"))
    settings = etcd_settings(server.url)
    leases = await stack.enter_async_context(opened(settings))
    lease = (await leases.grant(60)).id
    after = (await leases.list("")).revision
    async with Reading(leases.watch("", after=after)) as reading:
        for number in range(10):
            await leases.put(f"k{number % 2}", b"", lease)
        await reading.until(lambda batches: len(flat(batches)) == 10)
        await server.kill()
        port = int(server.url.rpartition(":")[2])
        await stack.enter_async_context(etcd_server(tmp_path / "new", port))
        fresh = (await leases.grant(60)).id
        await leases.put("k1", b"again", fresh)
        await reading.until(lambda batches: ("k0", None) in flat(batches) and ("k1", b"again") in flat(batches))


async def test_an_expired_lease_is_gone_for_keys_too(etcd_url: str) -> None:
    async with opened(etcd_settings(etcd_url)) as leases:
        lease = (await leases.grant(2)).id
        with pytest.raises(KeyTaken):
            await eventually(lambda: _create_until_taken(leases, lease))
        await eventually(lambda: _is_gone(leases, lease))
        with pytest.raises(LeaseGone):
            await leases.create("leader", b"me", lease)


async def _create_until_taken(leases: EtcdLeases, lease: int) -> bool:
    await leases.create("leader", b"me", lease)
    return False


async def _is_gone(leases: EtcdLeases, lease: int) -> bool:
    return await leases.inspect(lease) is None


async def test_other_tenants_leases_and_keys_are_not_shown(etcd_url: str) -> None:
    async with opened(etcd_settings(etcd_url)) as mine, opened(etcd_settings(etcd_url)) as others:
        lease = (await others.grant(60)).id
        await others.put("k", b"", lease)
        assert (await mine.list("")).items == ()
        assert lease not in {info.id for info in await mine.inspect_all()}
        await others.revoke(lease)


async def switch_on_authentication(url: str, prefix: str) -> None:
    """A root user, and `holdfast` with rights on the keys below the prefix."""
    gateway = EtcdGateway(etcd_settings(url))
    steps: list[tuple[str, dict[str, Any]]] = [
        ("auth/user/add", {"name": "root", "password": ROOT_SECRET}),
        ("auth/role/add", {"name": "root"}),
        ("auth/user/grant", {"user": "root", "role": "root"}),
        ("auth/user/add", {"name": "holdfast", "password": SECRET}),
        ("auth/role/add", {"name": "holdfast"}),
        (
            "auth/role/grant",
            {
                "name": "holdfast",
                "perm": {"permType": "READWRITE", "key": encoded(prefix), "range_end": encoded(prefix[:-1] + "0")},
            },
        ),
        ("auth/user/grant", {"user": "holdfast", "role": "holdfast"}),
        ("auth/enable", {}),
    ]
    for path, payload in steps:
        await gateway.call(path, payload)
    await gateway.close()


async def test_authentication_and_tokens_that_expire(tmp_path: Path, stack: AsyncExitStack) -> None:
    server = await stack.enter_async_context(etcd_server(tmp_path))
    settings = etcd_settings(server.url, prefix="/mine/", user="holdfast", password=SECRET)
    with pytest.raises(InvalidConfig, match="authentication switched off"):
        await EtcdLeases.open(settings)
    await switch_on_authentication(server.url, "/mine/")
    leases = await stack.enter_async_context(opened(settings))
    lease = (await leases.grant(60)).id
    after = await leases.put("k", b"1", lease)
    async with Reading(leases.watch("", after=after)) as reading:
        await leases.put("k", b"2", lease)
        await reading.count(1)
        # A restarted member has forgotten all tokens.
        await server.kill()
        await server.start()
        assert await leases.keep_alive(lease) > 0
        await leases.put("k", b"3", lease)
        await reading.until(lambda batches: flat(batches) == [("k", b"2"), ("k", b"3")])
    await _check_refusals(server, settings)


async def _check_refusals(server: ChildProcess, settings: EtcdSettings) -> None:
    refused = {
        "refused user holdfast": settings.model_copy(
            update={"password": etcd_settings(DEAD, user="u", password="no").password}
        ),
        "set user and password": etcd_settings(server.url, prefix="/mine/"),
        "denies user holdfast": settings.model_copy(update={"prefix": "/others/"}),
    }
    for told, changed in refused.items():
        with pytest.raises(InvalidConfig, match=told) as caught:
            await EtcdLeases.open(changed)
        assert SECRET not in f"{caught.value}{changed}"


async def test_tls_with_a_client_certificate(tmp_path: Path, stack: AsyncExitStack) -> None:
    certificates = Certificates(tmp_path)
    flags = [
        f"--cert-file={certificates.certificate}",
        f"--key-file={certificates.key}",
        f"--trusted-ca-file={certificates.ca}",
        "--client-cert-auth",
    ]
    server = await stack.enter_async_context(
        etcd_server(tmp_path / "server", free_port(), more_flags=flags, scheme="https")
    )
    files: dict[str, Any] = {
        "tls_ca_file": certificates.ca,
        "tls_cert_file": certificates.certificate,
        "tls_key_file": certificates.key,
    }
    leases = await stack.enter_async_context(opened(etcd_settings(server.url, **files)))
    lease = (await leases.grant(60)).id
    after = (await leases.list("")).revision
    async with Reading(leases.watch("", after=after)) as reading:
        await leases.put("k", b"", lease)
        await reading.count(1)
    with pytest.raises(LeasesUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        await EtcdLeases.open(etcd_settings(server.url, request_timeout_s=2))


async def test_an_unreadable_certificate_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="tls_ca_file"):
        await EtcdLeases.open(etcd_settings("https://127.0.0.1:9", tls_ca_file=tmp_path / "missing.pem"))


async def test_servers_before_3_4_are_refused() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"etcdserver":"3.3.27","etcdcluster":"3.3.0"}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        with pytest.raises(IncompatibleServer, match=r"etcd 3\.3\.27; upgrade it to 3\.4"):
            await EtcdLeases.open(etcd_settings(url))
