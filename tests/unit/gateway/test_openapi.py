"""The document against the app: every generated request gets an answer that the document describes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, settings

from holdfast.gateway.app import HttpSettings, create_app
from holdfast.gateway.openapi import document
from tests.unit.gateway.fakes import FakeBackend

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(FakeBackend()))
schema.config.generation.update(modes=list(schemathesis.GenerationMode))


@schema.parametrize()  # type: ignore[untyped-decorator]
@settings(max_examples=40, deadline=None)
def test_every_answer_is_as_the_document_says(case: Any) -> None:
    assume(not _beyond_a_schema(case.body))
    assume(not _in_a_hurry((case.headers or {}).get("x-request-timeout-seconds", "")))
    case.call_and_validate()


def _in_a_hurry(timeout: str) -> bool:
    """Rightly answered with a 504, which is taken for a fault of the server's."""
    try:
        return 0 < float(timeout) < 60
    except ValueError:
        return False


def _beyond_a_schema(body: Any) -> bool:
    """Rules that compare fields, which JSON Schema can't say: these requests are rightly refused."""
    if not isinstance(body, dict):
        return False
    if body.get("tools") or body.get("tool_choice"):
        return True
    if not isinstance(body.get("min_tokens"), int):
        return False
    limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
    return bool(body["min_tokens"] > next((limit for limit in limits if isinstance(limit, int)), 16))


def test_limits_that_are_settings_are_in_the_document() -> None:
    found = document(HttpSettings(n_max=3, stop_sequences_max=2, stop_chars_max=9))["components"]["schemas"]
    properties = found["ChatRequest"]["properties"]
    assert properties["n"]["maximum"] == 3
    text, texts = properties["stop"]["anyOf"]
    assert (text["maxLength"], texts["maxItems"], texts["items"]["maxLength"]) == (9, 2, 9)


def test_a_key_is_asked_for_in_the_document_when_there_are_keys() -> None:
    paths = document(HttpSettings.model_validate({"api_keys": ["x"]}))["paths"]
    assert paths["/v1/models"]["get"]["security"] == [{"apiKey": []}]
    assert "security" not in paths["/health"]["get"]


def test_every_error_of_the_generating_routes_is_described() -> None:
    responses = document(HttpSettings())["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(responses) == {"200", "400", "401", "403", "404", "408", "413", "415", "499", "500", "503", "504"}
