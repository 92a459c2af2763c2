"""The document against the app: every generated request gets an answer that the document describes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, settings

from holdfast.gateway.app import HttpSettings, create_app
from holdfast.gateway.openapi import document
from holdfast.gateway.request_headers import PARENT, PRIORITY, TIMEOUT
from holdfast.gateway.tracing import TRACEPARENT
from tests.unit.gateway.fakes import FakeBackend

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(FakeBackend()))
schema.config.generation.update(modes=list(schemathesis.GenerationMode))


@schema.parametrize()  # type: ignore[untyped-decorator]
@settings(max_examples=40, deadline=None)
def test_every_answer_is_as_the_document_says(case: Any) -> None:
    assume(not _beyond_a_schema(case.body))
    if case.headers:
        case.headers.pop("Last-Event-ID", None)  # a stream to go on with, which a schema can't make up
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
    prompts, n = body.get("prompt"), body.get("n")
    if isinstance(prompts, list) and isinstance(n, int) and len(prompts) * n > HttpSettings().choices_max:
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
    assert set(responses) == {"200", "400", "401", "403", "404", "408", "409", "413", "415", "499", "500", "503", "504"}


DOCUMENTATION = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text()


def _first_column(heading: str) -> list[str]:
    """The names in the first column of the table that follows a line."""
    table = DOCUMENTATION.partition(heading)[2].lstrip().split("\n\n")
    lines = next(part for part in table if part.startswith("|")).splitlines()[2:]
    return [name for line in lines for name in re.findall("`([^`]+)`", line.split("|")[1])]


def test_the_documentation_has_the_headers_of_a_request_for_tokens() -> None:
    listed = _first_column("A request for tokens may have these headers")
    for path in ("/v1/chat/completions", "/v1/completions"):
        parameters = document(HttpSettings())["paths"][path]["post"]["parameters"]
        found = [one["name"] for one in parameters if one["in"] == "header"]
        assert sorted(listed) == sorted(found)


def test_the_headers_that_are_read_are_in_the_document() -> None:
    parameters = document(HttpSettings())["paths"]["/v1/completions"]["post"]["parameters"]
    read = {PRIORITY.decode(), TIMEOUT, PARENT, TRACEPARENT.decode(), "last-event-id", "x-request-id"}
    assert {one["name"].lower() for one in parameters} == read


def test_the_documentation_has_all_settings_of_the_api() -> None:
    assert sorted(_first_column("## Settings")) == sorted(HttpSettings.model_fields)
