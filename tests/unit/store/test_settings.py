"""Settings refuse what can't be meant, and keep secrets to themselves."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from pydantic import ValidationError

from holdfast.store import (
    etcd,
    etcd_gateway,
    etcd_http,
    etcd_watch,
    jetstream,
    jetstream_api,
    jetstream_follow,
    jetstream_stream,
    nats_connection,
)
from holdfast.store.settings import EtcdSettings, JetStreamSettings, TlsSettings


@pytest.mark.parametrize(
    ("model", "modules"),
    [
        (JetStreamSettings, (jetstream, jetstream_api, jetstream_follow, jetstream_stream, nats_connection)),
        (EtcdSettings, (etcd, etcd_gateway, etcd_http, etcd_watch)),
        (TlsSettings, (inspect.getmodule(TlsSettings),)),
    ],
)
def test_every_setting_is_described_and_read_by_its_adapter(model: Any, modules: tuple[Any, ...]) -> None:
    source = "".join(inspect.getsource(module) for module in modules)
    own = model.model_fields if model is TlsSettings else model.model_fields.keys() - TlsSettings.model_fields.keys()
    for name in own:
        assert model.model_fields[name].description
        assert f"settings.{name}" in source or f"self.{name}" in source, name


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"urls": ("http://127.0.0.1:4222",)}, "must start with nats:// or tls://"),
        ({"urls": ("nats://u:secret@127.0.0.1",)}, "credentials in their own settings"),
        ({"urls": ("nats://",)}, "needs a host"),
        ({"urls": ("nats://a", "nats://a")}, "given twice"),
        ({"urls": ()}, "at least 1"),
        ({"replicas": 2}, "1, 3 or 5"),
        ({"append_timeout_s": 0}, "greater than 0"),
        ({"user": "u"}, "user and password are set together"),
        ({"user": "u", "password": "secret", "token": "secret"}, "only one of"),
        ({"tls_key_file": "secret"}, "set together"),
        ({"no_such_setting": 1}, "not permitted"),
        ({"stream": "a.b"}, "should match pattern"),
    ],
)
def test_a_wrong_setting_is_told_without_its_value(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told) as caught:
        JetStreamSettings(**wrong)
    assert "secret" not in str(caught.value)


def test_a_trailing_slash_of_an_endpoint_is_no_matter() -> None:
    assert EtcdSettings(endpoints=("http://a:2379/",)).endpoints == ("http://a:2379",)


def test_secrets_do_not_show() -> None:
    settings = (
        JetStreamSettings(user="u", password="secret"),
        JetStreamSettings(token="secret"),
        EtcdSettings(user="u", password="secret"),
    )
    for each in settings:
        assert "secret" not in f"{each!r}{each}{each.model_dump()}{each.model_dump_json()}"
