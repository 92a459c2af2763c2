"""What the log demands of JetStream servers and streams, and how it gets in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.errors import IncompatibleServer, InvalidConfig, LogUnavailable
from holdfast.store.embedded import nats_server
from holdfast.store.jetstream import JetStreamLog
from holdfast.store.jetstream_stream import stream_config, subjects
from holdfast.store.nats_link import NoResponders
from holdfast.store.settings import JetStreamSettings
from tests.contract.helpers import Certificates
from tests.contract.worlds import CALL_TIMEOUT_S, jetstream_settings

SECRET = "s3cret-of-the-test"


@asynccontextmanager
async def opened(settings: JetStreamSettings) -> AsyncIterator[JetStreamLog]:
    log = await JetStreamLog.open(settings)
    try:
        yield log
    finally:
        await log.close()


async def create_by_hand(url: str, settings: JetStreamSettings, **changes: Any) -> None:
    """Create the stream as an operator might have."""
    async with opened(jetstream_settings(url)) as other:
        config = {**stream_config(settings), **changes}
        await other._api.call(f"STREAM.CREATE.{settings.stream}", config, timeout_s=CALL_TIMEOUT_S)


async def stream_of(log: JetStreamLog) -> dict[str, Any]:
    info = await log._api.stream_info(CALL_TIMEOUT_S)
    config: dict[str, Any] = info["config"]
    return config


async def test_the_stream_is_created_with_its_limits_spelled_out(nats_url: str) -> None:
    settings = jetstream_settings(nats_url, max_bytes=1 << 20, max_message_bytes=1 << 16, duplicate_window_s=30)
    async with opened(settings) as log:
        config = await stream_of(log)
    assert config["storage"] == "file"
    assert config["discard"] == "new"
    assert config["max_age"] == 0
    assert config["max_bytes"] == 1 << 20
    assert config["max_msg_size"] == 1 << 16
    assert config["duplicate_window"] == 30_000_000_000
    assert config["deny_delete"] is True
    assert not config.get("allow_direct")
    assert config["subjects"] == [f"{settings.subject_prefix}.decisions", f"{settings.subject_prefix}.facts.>"]


async def test_a_stream_made_the_same_way_is_taken(nats_url: str) -> None:
    settings = jetstream_settings(nats_url)
    await create_by_hand(nats_url, settings)
    async with opened(settings) as log:
        assert await log.append("facts.a", b"", message_id="m", expected_last=0) == 1


async def test_many_clients_may_create_the_stream_at_once(nats_url: str) -> None:
    settings = jetstream_settings(nats_url)
    logs = await asyncio.gather(*(JetStreamLog.open(settings) for _ in range(8)))
    for log in logs:
        await log.close()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"storage": "memory"}, "storage is 'memory' and must be 'file'"),
        ({"discard": "old"}, "discard is 'old' and must be 'new'"),
        ({"max_age": 3_600_000_000_000}, "max_age is 3600000000000 and must be 0"),
        ({"max_msgs": 10}, "max_msgs is 10 and must be -1"),
        ({"max_msgs_per_subject": 1}, "max_msgs_per_subject is 1 and must be -1"),
        ({"retention": "interest"}, "retention is 'interest' and must be 'limits'"),
        ({"deny_delete": False}, "deny_delete is False and must be True"),
        ({"allow_rollup_hdrs": True}, "allow_rollup_hdrs is True and must be False"),
        ({"max_msg_size": 100}, "max_msg_size is 100, less than max_message_bytes"),
        ({"persist_mode": "async"}, "persist_mode is 'async' and must be 'default'"),
    ],
)
async def test_a_stream_that_differs_in_what_matters_is_refused(
    nats_url: str, changes: dict[str, Any], told: str
) -> None:
    settings = jetstream_settings(nats_url)
    await create_by_hand(nats_url, settings, **changes)
    with pytest.raises(IncompatibleServer, match=told) as caught:
        await JetStreamLog.open(settings)
    assert settings.stream in str(caught.value)
    assert "nats stream edit" in str(caught.value)


async def test_a_stream_on_other_subjects_is_refused(nats_url: str) -> None:
    settings = jetstream_settings(nats_url)
    await create_by_hand(nats_url, settings, subjects=["elsewhere-of-it.>"])
    with pytest.raises(IncompatibleServer, match="subjects is"):
        await JetStreamLog.open(settings)


async def test_what_is_not_the_logs_does_not_get_into_its_stream(nats_url: str) -> None:
    settings = jetstream_settings(nats_url)
    async with opened(settings) as log:
        connection = await log._session.connection(CALL_TIMEOUT_S)
        for stray in ("stray", "decisions.stray", "fact.node"):
            with pytest.raises(NoResponders):
                await connection.request(f"{settings.subject_prefix}.{stray}", b"hello", CALL_TIMEOUT_S)
        assert (await log.status()).messages == 0


@pytest.mark.parametrize("more", [".>", ".old"])
async def test_a_stream_of_an_earlier_version_is_told_to_take_only_what_is_the_logs(nats_url: str, more: str) -> None:
    settings = jetstream_settings(nats_url)
    wanted = subjects(settings)
    subject = settings.subject_prefix + more
    await create_by_hand(nats_url, settings, subjects=[subject] if more == ".>" else [*wanted, subject])
    async with opened(settings) as log:
        assert (await stream_of(log))["subjects"] == wanted


async def test_subjects_that_belong_to_another_stream_are_told(nats_url: str) -> None:
    settings = jetstream_settings(nats_url)
    async with opened(settings):
        other = settings.model_copy(update={"stream": settings.stream + "-other"})
        with pytest.raises(IncompatibleServer, match="subjects overlap"):
            await JetStreamLog.open(other)


async def test_replicas_that_the_servers_cannot_give_are_told(nats_url: str) -> None:
    with pytest.raises(IncompatibleServer, match="3 replica"):
        await JetStreamLog.open(jetstream_settings(nats_url, replicas=3))


async def test_a_larger_limit_lets_the_stream_grow_and_a_smaller_one_leaves_it(nats_url: str) -> None:
    settings = jetstream_settings(nats_url, max_bytes=1 << 20)
    async with opened(settings), opened(settings.model_copy(update={"max_bytes": 1 << 22})) as larger:
        assert (await larger.status()).bytes_max == 1 << 22
        async with opened(settings) as smaller:
            assert (await smaller.status()).bytes_max == 1 << 22


@pytest.mark.parametrize(
    ("version", "refused"), [("2.12.2", True), ("2.9.25", True), ("2.12.3", False), ("3.0.0-beta.1", False)]
)
async def test_servers_before_2_12_3_are_refused(version: str, refused: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": version, "headers": True, "max_payload": 1 << 20}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        url = f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        expected = IncompatibleServer if refused else LogUnavailable
        told = f"nats-server {version}; upgrade it to 2.12.3" if refused else "JetStream does not answer|no answer"
        with pytest.raises(expected, match=told):
            await JetStreamLog.open(jetstream_settings(url, open_timeout_s=CALL_TIMEOUT_S if refused else 2))


@pytest.mark.parametrize(
    ("config", "right", "wrong"),
    [
        (
            f"authorization {{ user: someone, password: {SECRET} }}",
            {"user": "someone", "password": SECRET},
            {"user": "someone", "password": SECRET + "-not"},
        ),
        (f"authorization {{ token: {SECRET} }}", {"token": SECRET}, {"token": SECRET + "-not"}),
    ],
)
async def test_credentials_let_us_in_and_wrong_ones_are_told_without_showing_them(
    tmp_path: Path, config: str, right: dict[str, str], wrong: dict[str, str]
) -> None:
    async with nats_server(tmp_path, more_config=config) as server:
        async with opened(jetstream_settings(server.url, **right)) as log:
            assert await log.append("facts.a", b"", message_id="m", expected_last=0) == 1
        for credentials in (wrong, {}):
            settings = jetstream_settings(server.url, **credentials)
            with pytest.raises(InvalidConfig, match="refused the credentials") as caught:
                await JetStreamLog.open(settings)
            assert SECRET not in f"{caught.value}{settings}"


async def test_credentials_refused_later_are_a_failure_that_may_pass(tmp_path: Path) -> None:
    def config(password: str) -> str:
        return f"authorization {{ user: someone, password: {password} }}"

    server = nats_server(tmp_path, more_config=config(SECRET))
    async with server:
        port = int(server.url.rpartition(":")[2])
        async with opened(jetstream_settings(server.url, user="someone", password=SECRET, append_timeout_s=4)) as log:
            await server.kill()
            async with nats_server(tmp_path, port, more_config=config("changed")):
                with pytest.raises(LogUnavailable, match="refused the credentials"):
                    await log.append("facts.a", b"", message_id="m", expected_last=0)


async def test_tls_with_a_client_certificate(tmp_path: Path, stack: AsyncExitStack) -> None:
    certificates = Certificates(tmp_path)
    tls = (
        f'tls {{ cert_file: "{certificates.certificate}", key_file: "{certificates.key}", '
        f'ca_file: "{certificates.ca}", verify: true }}'
    )
    server = await stack.enter_async_context(nats_server(tmp_path / "server", more_config=tls))
    url = server.url.replace("nats://", "tls://")
    files: dict[str, Any] = {
        "tls_ca_file": certificates.ca,
        "tls_cert_file": certificates.certificate,
        "tls_key_file": certificates.key,
    }
    async with opened(jetstream_settings(url, **files)) as log:
        assert await log.append("facts.a", b"", message_id="m", expected_last=0) == 1
    with pytest.raises(LogUnavailable, match="certificate"):
        await JetStreamLog.open(jetstream_settings(url, open_timeout_s=2))


async def test_a_server_without_tls_is_not_talked_to_in_the_clear(nats_url: str) -> None:
    settings = jetstream_settings(
        nats_url.replace("nats://", "tls://"), user="someone", password=SECRET, open_timeout_s=2
    )
    with pytest.raises(LogUnavailable, match="secure connection"):
        await JetStreamLog.open(settings)


async def test_an_unreadable_certificate_is_told(nats_url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="tls_ca_file"):
        await JetStreamLog.open(jetstream_settings(nats_url, tls_ca_file=tmp_path / "missing.pem"))
