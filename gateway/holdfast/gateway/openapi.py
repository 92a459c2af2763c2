"""The OpenAPI document, put together from the types that requests are decoded into and answers encoded from.

Version 3.0: the Swagger UI that swagger_ui_bundle brings does not read 3.1. msgspec writes JSON Schema 2020-12,
of which `_down` rewrites the little that 3.0 says otherwise.
"""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.gateway.busy_threshold import BusyThreshold, BusyThresholdList, BusyThresholdRequest
from holdfast.gateway.http_settings import HttpSettings
from holdfast.gateway.openai import (
    TOKEN_ID_MAX,
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    HealthReport,
    Model,
    ModelList,
)
from holdfast.gateway.problems import ErrorBody
from holdfast.gateway.request_pages import LIMIT, LIMIT_MAX
from holdfast.gateway.requests import RequestList, RequestObject

Json = dict[str, Any]

_ERRORS = {
    400: "The request is invalid, or asks for something that this server can't honour; `param` names the field.",
    401: "The API key is missing or wrong.",
    403: "The API key may not do this.",
    404: "There is no such model, request or route.",
    405: "The route exists, but not with this method.",
    408: "The body took too long to arrive.",
    409: "Another request goes on with the stream.",
    413: "The body is longer than the gateway takes.",
    415: "The body is said not to be JSON.",
    429: "Rejected; `Retry-After` is in seconds. 503 unless `overload_status` is set to this.",
    499: "The request was cancelled, by its id or with the one that it belongs to.",
    500: "A fault of the server's. Its log has the details under the request's id.",
    503: "Overloaded, no replica, or the stream lost its replicas. `Retry-After` is in seconds, where it helps.",
    504: "The request's time was over before its first token.",
    529: "Rejected; `Retry-After` is in seconds. 503 unless `overload_status` is set to this.",
}
_GENERATE_ERRORS = (400, 401, 403, 404, 408, 409, 413, 415, 499, 500, 503, 504)
_TYPES = (
    *(ChatRequest, CompletionRequest, ChatCompletion, Completion),
    *(Model, ModelList, RequestObject, RequestList, HealthReport, ErrorBody),
    *(BusyThreshold, BusyThresholdList, BusyThresholdRequest),
)
_STREAM_NOTE = (
    "With `stream: true` the answer is `text/event-stream`: one event per token, each with an `id` of the form "
    "`<response id>.<choice>:<tokens delivered>`, then `data: [DONE]`. An error after the first token is an event "
    'with `{"error": ...}`, after which the stream ends without `[DONE]`.'
)


_REQUEST_ID: Json = {
    "name": "x-request-id",
    "in": "header",
    "description": "The request's id, if it is 1 to 128 visible ASCII characters; else it gets a new one.",
    "schema": {"type": "string"},
}
_LAST_EVENT: Json = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The id of the last event that the client has of a stream, which goes on after that.",
    "schema": {"type": "string"},
}
_TRACE: Json = {
    "name": "traceparent",
    "in": "header",
    "description": "The place in the client's trace, as W3C has it, with `tracestate`. What is none is passed over.",
    "schema": {"type": "string"},
}
_PRIORITY: Json = {
    "name": "x-holdfast-priority",
    "in": "header",
    "description": "How important the request is; the lowest are rejected first.",
    "schema": {"type": "string", "enum": ["critical", "default", "batch"], "default": "default"},
}


_TIMEOUT: Json = {
    "name": "x-request-timeout-seconds",
    "in": "header",
    "description": "The request's time, from its arrival; at most what the gateway gives.",
    "schema": {"type": "number", "minimum": 0, "exclusiveMinimum": True},
}
_PARENT: Json = {
    "name": "x-holdfast-parent",
    "in": "header",
    "description": "The id of the request that this one belongs to, and is cancelled with.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
}
_MODE: Json = {
    "name": "mode",
    "in": "query",
    "description": "stop: it ends well with what there is. kill: it ends at once, with an error.",
    "schema": {"type": "string", "enum": ["stop", "kill"], "default": "kill"},
}
_LIMIT: Json = {
    "name": "limit",
    "in": "query",
    "description": "The most requests of each gateway.",
    "schema": {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT},
}


def _never(**fields: Json) -> Json:
    """A rule over several fields: they must not all have such values. One that may be null may be absent."""
    required = [name for name, schema in fields.items() if None not in schema.get("enum", ())]
    return {"not": {"required": required, "properties": fields}}


_OFF: Json = {"enum": [False, None]}
_INTEGER: Json = {"type": "integer"}
_STREAM_OPTIONS_ALONE = _never(stream_options={"type": "object"}, stream=_OFF)
_JSON_FORMAT: Json = {
    "type": "object",
    "required": ["type"],
    "properties": {"type": {"enum": ["json_object", "json_schema"]}},
}
_CHAT_RULES = (
    _never(max_tokens=_INTEGER, max_completion_tokens=_INTEGER),
    _never(top_logprobs=_INTEGER, logprobs=_OFF),
    _never(response_format=_JSON_FORMAT, ignore_eos={"enum": [True]}),
)
_COMPLETION_RULES = (
    _never(echo={"enum": [True]}, logprobs=_INTEGER),
    _never(echo={"enum": [True]}, prompt={"type": "array", "items": {"not": {"type": "string"}}}),
)


def document(settings: HttpSettings) -> Json:
    """The document for a gateway with these settings: their limits are in its schemas."""
    _, components = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    schemas = {name: _down(schema) for name, schema in components.items()}
    for name in ("ChatRequest", "CompletionRequest"):
        _limit(schemas[name]["properties"], settings)
    schemas["CompletionRequest"]["properties"]["prompt"]["anyOf"] = _prompt_schemas()
    schemas["ChatRequest"]["allOf"] = [_STREAM_OPTIONS_ALONE, *_CHAT_RULES]
    schemas["AssistantMessage"]["allOf"] = [_never(content={"enum": [None]}, tool_calls={"enum": [None, []]})]
    schemas["CompletionRequest"]["allOf"] = [_STREAM_OPTIONS_ALONE, *_COMPLETION_RULES]
    security: Json = {"security": [{"apiKey": []}]} if settings.api_keys or settings.admin_keys else {}
    paths: Json = {}
    for path, method, item in _operations(settings):
        keyed = path.startswith(("/v1", "/busy_threshold"))
        paths.setdefault(path, {})[method] = {**item, **security} if keyed else item
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "Holdfast",
            "version": "1",
            "description": "Serves models as token streams that no single failure can break. OpenAI's API.",
            "license": {"name": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "headers": _headers(),
            "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operations(settings: HttpSettings) -> list[tuple[str, str, Json]]:
    return [
        (
            "/v1/chat/completions",
            "post",
            _generate(settings, "Chat", "createChatCompletion", "ChatRequest", "ChatCompletion"),
        ),
        (
            "/v1/completions",
            "post",
            _generate(settings, "Complete text", "createCompletion", "CompletionRequest", "Completion"),
        ),
        ("/v1/models", "get", _page("Deployed models", "listModels", "ModelList", errors=(401,))),
        ("/v1/models/{model}", "get", _with_model(_page("One model", "getModel", "Model", errors=(401, 404)))),
        ("/v1/requests", "get", _open_requests()),
        ("/v1/requests/{id}", "delete", _cancel()),
        ("/busy_threshold", "get", _page("Thresholds", "busyThresholds", "BusyThresholdList", errors=(401,))),
        ("/busy_threshold", "post", _set_thresholds()),
        ("/health", "get", _health()),
        ("/live", "get", _page("Whether this process runs", "live", {"type": "object"})),
        ("/metrics", "get", _text("Metrics for Prometheus", "metrics")),
        ("/-/healthz", "get", _text("Whether everything can be served, in a word", "healthz", unhealthy=True)),
        ("/-/routes", "get", _page("Which applications answer on which route", "routes", _routes_schema())),
        ("/openapi.json", "get", _page("This document", "openapi", {"type": "object"})),
    ]


def _routes_schema() -> Json:
    return {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}}


def _generate(settings: HttpSettings, summary: str, name: str, request: str, answer: str) -> Json:
    ok = _response("The answer.", _ref(answer))
    ok["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "summary": summary,
        "description": _STREAM_NOTE,
        "operationId": name,
        "tags": ["generate"],
        "parameters": [_REQUEST_ID, _TIMEOUT, _PARENT, _PRIORITY, _TRACE, _LAST_EVENT],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request)}}},
        "responses": {"200": ok, **_errors(tuple(sorted({*_GENERATE_ERRORS, settings.overload_status})))},
    }


def _page(summary: str, name: str, schema: str | Json, errors: tuple[int, ...] = ()) -> Json:
    found = _ref(schema) if isinstance(schema, str) else schema
    return {
        "summary": summary,
        "operationId": name,
        "tags": ["about"],
        "responses": {"200": _response(summary, found), **_errors((*errors, 500))},
    }


def _open_requests() -> Json:
    item = _page("Open requests of all gateways", "listRequests", "RequestList", errors=(400, 401))
    return {**item, "parameters": [_LIMIT]}


def _cancel() -> Json:
    summary = "End a request, and all that belong to it"
    item = _page(summary, "cancelRequest", "RequestObject", errors=(400, 401, 404, 503))
    parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {**item, "parameters": [parameter, _MODE]}


def _with_model(item: Json) -> Json:
    parameter = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {**item, "parameters": [parameter]}


def _set_thresholds() -> Json:
    errors = (400, 401, 403, 404, 413, 503)
    item = _page("Change a model's thresholds", "setBusyThreshold", "BusyThreshold", errors=errors)
    body = {"application/json": {"schema": _ref("BusyThresholdRequest")}}
    return {**item, "requestBody": {"required": True, "content": body}}


def _health() -> Json:
    item = _page("Whether this gateway can serve everything", "health", "HealthReport")
    item["responses"]["503"] = _response("It can't; `reasons` says why not.", _ref("HealthReport"))
    return item


def _text(summary: str, name: str, *, unhealthy: bool = False) -> Json:
    item = _page(summary, name, {"type": "string"})
    plain = {"text/plain": {"schema": {"type": "string"}}}
    item["responses"]["200"]["content"] = plain
    if unhealthy:
        item["responses"]["503"] = {"description": "Why not.", "headers": _header_refs(), "content": plain}
    return item


def _errors(statuses: tuple[int, ...]) -> Json:
    found = {str(status): _response(_ERRORS[status], _ref("ErrorBody")) for status in statuses}
    for status in found.keys() & {"429", "503", "529"}:
        for name in ("retry-after", "x-holdfast-reason"):
            found[status]["headers"][name] = {"$ref": f"#/components/headers/{name}"}
    return found


def _response(description: str, schema: Json) -> Json:
    return {
        "description": description,
        "headers": _header_refs(),
        "content": {"application/json": {"schema": schema}},
    }


def _header_refs() -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("x-request-id", "x-holdfast-gateway")}


def _headers() -> Json:
    text = {"type": "string"}
    return {
        "x-request-id": {
            "description": "The request's `x-request-id` if it is sane (see the documentation), else a new one.",
            "required": True,
            "schema": text,
        },
        "x-holdfast-gateway": {"description": "The gateway that answered.", "required": True, "schema": text},
        "x-holdfast-reason": {"description": "Why the request was rejected, in a word.", "schema": text},
        "retry-after": {"description": "Seconds to wait before another try.", "schema": {"type": "integer"}},
    }


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _limit(properties: Json, settings: HttpSettings) -> None:
    """Write the limits that are settings into a request's schema."""
    properties["n"]["maximum"] = settings.n_max
    for stop in properties["stop"]["anyOf"]:
        text = stop
        if stop["type"] == "array":
            stop["maxItems"] = settings.stop_sequences_max
            text = stop["items"]
        text["minLength"] = 1
        text["maxLength"] = settings.stop_chars_max


def _prompt_schemas() -> list[Json]:
    """The four kinds of prompt, which msgspec's types can't tell apart."""
    ids: Json = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": TOKEN_ID_MAX}}
    return [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"type": "string"}},
        ids,
        {"type": "array", "minItems": 1, "items": ids},
    ]


def _down(schema: Any) -> Any:
    """JSON Schema 2020-12 as OpenAPI 3.0 wants it: null is no type but `nullable`, and stands beside a `$ref`."""
    if isinstance(schema, list):
        return [_down(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _down(value) for key, value in schema.items() if key != "default" or value is not None}
    if found.get("type") == "null":
        return {**{key: value for key, value in found.items() if key != "type"}, "nullable": True, "enum": [None]}
    if found.get("type") == "array":
        found.setdefault("items", {})
    options = found.get("anyOf", [])
    rest = [option for option in options if option.get("enum") != [None]]
    if len(rest) == len(options):
        return found
    del found["anyOf"]
    if len(rest) > 1:
        return {**found, "anyOf": rest, "nullable": True}
    if "$ref" in rest[0]:
        return {**found, "allOf": rest, "nullable": True}
    if "enum" in rest[0]:
        return {**found, **rest[0], "enum": [*rest[0]["enum"], None], "nullable": True}
    return {**found, **rest[0], "nullable": True}
