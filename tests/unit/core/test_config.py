"""A configuration is taken as it is meant, or refused with the field that is wrong."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.config import ApplicationConfig, DeploymentConfig, EngineConfig, check_name, parse_application
from holdfast.core.errors import InvalidConfig
from tests.unit.support.strategies import SOME, of_type


def raw(**changes: Any) -> str:
    """A good application with one bad deployment field."""
    deployment = {"name": "tiny", "engine": {"kind": "mock"}, **changes}
    return json.dumps({"name": "app", "deployments": [deployment]})


def test_an_engine_of_ones_own_names_its_class() -> None:
    arguments = {"import_path": "package.module:Class", "size": 3}
    application = parse_application(raw(engine={"kind": "class", "arguments": arguments}))
    assert application.deployments[0].engine.arguments == arguments
    for path in ("module", "module:", ":Class", "module:Class()", "../module:Class", 3, None):
        with pytest.raises(InvalidConfig, match=r'must be "package\.module:Class", not'):
            parse_application(raw(engine={"kind": "class", "arguments": {"import_path": path}}))


def test_what_is_left_out_has_defaults() -> None:
    application = parse_application(raw())
    assert application == ApplicationConfig("app", [DeploymentConfig("tiny", EngineConfig("mock"))])
    assert application.deployments[0].num_replicas == 1


@SOME
@given(of_type(ApplicationConfig))
def test_every_application_that_names_its_deployments_apart_can_be_written_and_read(config: ApplicationConfig) -> None:
    names = [deployment.name for deployment in config.deployments]
    text = msgspec.json.encode(config)
    if len(set(names)) < len(names):
        with pytest.raises(InvalidConfig, match="two deployments are named"):
            parse_application(text)
    elif any(deployment.engine.kind == "class" for deployment in config.deployments):
        with pytest.raises(InvalidConfig, match="import_path"):
            parse_application(text)
    else:
        assert parse_application(text) == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (raw(num_replica=2), r"unknown field `num_replica` - at `\$.deployments\[0\]`"),
        (raw(num_replicas=-1), r"\$.deployments\[0\].num_replicas"),
        (raw(num_replicas=10_001), r"\$.deployments\[0\].num_replicas"),
        (raw(num_replicas=1.5), r"\$.deployments\[0\].num_replicas"),
        (raw(num_replicas="2"), r"\$.deployments\[0\].num_replicas"),
        (raw(max_ongoing_requests=0), r"\$.deployments\[0\].max_ongoing_requests"),
        (raw(max_queued_requests=-1), r"\$.deployments\[0\].max_queued_requests"),
        (raw(graceful_shutdown_timeout_s=90_000), r"\$.deployments\[0\].graceful_shutdown_timeout_s"),
        (raw(name="Tiny"), r"\$.deployments\[0\].name"),
        (raw(name="tiny\n"), r"\$.deployments\[0\].name"),
        (raw(name="-tiny"), r"\$.deployments\[0\].name"),
        (raw(name="t" * 64), r"\$.deployments\[0\].name"),
        (raw(engine={"kind": "magic"}), r"\$.deployments\[0\].engine.kind"),
        (raw(engine={"kind": "mock", "argument": {}}), r"unknown field `argument` - at `\$.deployments\[0\].engine`"),
        (raw(engine={}), "missing required field `kind`"),
        ('{"name": "app", "deployments": []}', r"\$.deployments"),
        ('{"name": "app"}', "missing required field `deployments`"),
        ('{"name": "app"', "truncated"),
        ("[]", "Expected `object`"),
        ("", "truncated"),
        (b'{"name": "\xff"}', "application"),
        (b'{"name": "a", "deployments": [{"engine": {"arguments": {"a":' + b"[" * 100_000, "application"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_field(text: str | bytes, says: str) -> None:
    with pytest.raises(InvalidConfig, match=says):
        parse_application(text)


@pytest.mark.parametrize("name", ["a", "0", "node-1", "a" * 63, "a--b"])
def test_labels_are_legal_names(name: str) -> None:
    assert check_name("node", name) == name


@pytest.mark.parametrize("name", ["", "-", "a-", "-a", "A", "a.b", "a/b", "a b", "a\n", "ä", "a" * 64])
def test_what_is_no_label_is_no_name(name: str) -> None:
    with pytest.raises(InvalidConfig, match=r"node .*lower-case letters, digits and dashes"):
        check_name("node", name)


@SOME
@given(st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z"))
def test_names_are_exactly_the_labels(name: str) -> None:
    assert check_name("node", name) == name
    assert parse_application(raw(name=name)).deployments[0].name == name
