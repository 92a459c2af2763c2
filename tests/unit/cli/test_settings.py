"""Settings from the environment: what is refused, and with which words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from holdfast.core.errors import InvalidConfig
from holdfast.gateway.environment import setting_names
from holdfast.gateway.leftovers import MARK
from holdfast.gateway.settings import Settings, load_settings


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("HOLDFAST_LEASE_TTL", "HOLDFAST_LEASE_TTL_S"),
        ("HOLDFAST_SERVNG__REPLICA_WAIT_S", "HOLDFAST_SERVING__REPLICA_WAIT_S"),
        ("HOLDFAST_GATEWAY_PORT", "HOLDFAST_GATEWAY__PORT"),
        ("holdfast_clustre", "HOLDFAST_CLUSTER"),
    ],
)
def test_a_misspelt_setting_is_refused_with_the_nearest_known_name(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str
) -> None:
    monkeypatch.setenv(name, "99")
    with pytest.raises(InvalidConfig, match=rf"{name} .*did you mean {nearest}\?"):
        load_settings()


def test_every_misspelt_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SERVNG__X", "1")
    monkeypatch.setenv("HOLDFAST_NATS__URL", "1")
    with pytest.raises(InvalidConfig, match=r"HOLDFAST_NATS__URL .*HOLDFAST_SERVNG__X "):
        load_settings()


def test_names_that_are_ours_or_of_kubernetes_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {MARK: "/data", "HOLDFAST_CLUSTER": "blue", "HOLDFAST_NATS": '{"urls": ["nats://a:1"]}'}
    links = {
        "HOLDFAST_SERVICE_HOST": "10.0.0.1",
        "HOLDFAST_PORT": "tcp://10.0.0.1:8000",
        "HOLDFAST_PORT_8000_TCP_ADDR": "10.0.0.1",
        "HOLDFAST_GATEWAY_SERVICE_PORT_HTTP": "8000",
    }
    for name, value in {**ours, **links}.items():
        monkeypatch.setenv(name, value)
    assert load_settings().cluster == "blue"


def test_nested_settings_have_names_of_their_own() -> None:
    names = set(setting_names(Settings, "HOLDFAST_"))
    assert {"HOLDFAST_LEASE_TTL_S", "HOLDFAST_NATS", "HOLDFAST_NATS__URLS", "HOLDFAST_HTTP__API_KEYS"} <= names


def test_a_timeout_shorter_than_four_heartbeats_is_refused_with_both_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_NODE__HEARTBEAT_INTERVAL_S", "0.5")
    assert load_settings().serving.heartbeat_timeout_s == 2.0
    monkeypatch.setenv("HOLDFAST_SERVING__HEARTBEAT_TIMEOUT_S", "1.9")
    both = r"HOLDFAST_SERVING__HEARTBEAT_TIMEOUT_S \(1\.9\).* HOLDFAST_NODE__HEARTBEAT_INTERVAL_S \(0\.5\)"
    with pytest.raises(InvalidConfig, match=both):
        load_settings()


def test_the_number_of_copies_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_NATS__REPLICAS", "3")
    assert load_settings().log_settings().replicas == 3
    monkeypatch.setenv("HOLDFAST_NATS__REPLICAS", "three")
    with pytest.raises(InvalidConfig, match=r"nats\.replicas"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOLDFAST_HTTP__API_KEYS", "hidden-key"),
        ("HOLDFAST_NATS__URLS", "nats://hidden-key:4222"),
        ("HOLDFAST_HTTP", '{"api_keys": ["hidden-key"'),
    ],
)
def test_a_list_that_is_no_json_is_refused_by_its_name_and_without_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("HOLDFAST_ETCD__ENDPOINTS", '["http://a:2379"]')
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidConfig, match=rf"^{name} in the environment must be JSON") as refused:
        load_settings()
    assert "hidden-key" not in str(refused.value)


@pytest.mark.parametrize("name", ["HOLDFAST_HTTP__API_KEYS", "HOLDFAST_HTTP__ADMIN_KEYS"])
def test_an_empty_key_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, '["good", ""]')
    with pytest.raises(InvalidConfig, match=r"http\.(api|admin)_keys\.1: .*at least 1"):
        load_settings()


def test_every_setting_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = load_settings()
    for name, value in _values(defaults, "HOLDFAST_"):
        monkeypatch.setenv(name, value)
    assert load_settings() == defaults


@pytest.mark.parametrize("status", [503, 429, 529])
def test_the_status_of_rejections_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("HOLDFAST_HTTP__OVERLOAD_STATUS", str(status))
    assert load_settings().http.overload_status == status


def _values(model: BaseModel, prefix: str) -> Iterator[tuple[str, str]]:
    """The settings that have a value, as texts for the environment."""
    for name in type(model).model_fields:
        value: Any = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _values(value, f"{prefix}{name.upper()}__")
        elif isinstance(value, tuple):
            yield f"{prefix}{name.upper()}", json.dumps(value)
        elif value is not None:
            yield f"{prefix}{name.upper()}", str(value)
