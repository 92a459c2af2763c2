"""Writes `docs/configuration.md` from the settings themselves: `python -m holdfast.gateway.reference`.

It writes `docs/metrics.md` too. Tests hold the files against this, so that the reference can't drift from the code.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from holdfast.actors.engines.mock import MockSettings
from holdfast.actors.engines.torch.settings import TorchSettings
from holdfast.core.config import ApplicationConfig, DeploymentConfig, EngineConfig
from holdfast.core.thresholds import Thresholds
from holdfast.gateway import metrics_reference
from holdfast.gateway.settings import Settings

TARGET = Path("docs/configuration.md")

_FROM_CLUSTER = {
    "HOLDFAST_NATS__STREAM": "`HOLDFAST_<cluster>`",
    "HOLDFAST_NATS__SUBJECT_PREFIX": "`holdfast.<cluster>`",
    "HOLDFAST_ETCD__PREFIX": "`/holdfast/<cluster>/`",
}
"""Defaults that follow from the cluster's name (`Settings.log_settings`, `Settings.lease_settings`)."""

_HEAD = """# Configuration

Generated from the code by `python -m holdfast.gateway.reference`; a test keeps it true.

Processes read their settings from the environment. A nested setting has two underscores
(`HOLDFAST_SERVING__REPLICA_WAIT_S=10`), lists are JSON (`HOLDFAST_NATS__URLS='["nats://10.0.0.1:4222"]'`).
Options of the command line win over the environment. An unknown value or one out of range ends the process
with exit code 2 and a line that names the setting. `holdfast up` hands its environment to everything it starts.
"""

_APPLICATION_HEAD = """## Applications

What `holdfast up` deploys, and what stands in the log as `DeployRequested` and `ApplicationDeployed`, as JSON.
Unknown fields are errors.
"""


def reference() -> str:
    """The whole document."""
    parts = [_HEAD, "## Processes\n", *_models(Settings, "HOLDFAST_", "every process")]
    parts.append(_APPLICATION_HEAD)
    for struct in (ApplicationConfig, DeploymentConfig, Thresholds, EngineConfig, MockSettings, TorchSettings):
        parts.append(_struct(struct))
    return "\n".join(parts).rstrip() + "\n"


def _models(model: type[BaseModel], prefix: str, about: str) -> Iterator[str]:
    """A table of a model's plain settings, then those of the models in it."""
    nested = {name: field for name, field in model.model_fields.items() if _nested(field) is not None}
    plain = [name for name in model.model_fields if name not in nested]
    yield f"### `{prefix}*`: {about}\n"
    yield "| setting | default | range | meaning |\n| --- | --- | --- | --- |"
    for name in plain:
        field = model.model_fields[name]
        variable = f"{prefix}{name.upper()}"
        default = _FROM_CLUSTER.get(variable) or _shown(_default(field))
        yield f"| `{variable}` | {default} | {_range(field)} | {_escaped(field.description or '')} |"
    yield ""
    for name, field in nested.items():
        inner = _nested(field)
        assert inner is not None
        yield from _models(inner, f"{prefix}{name.upper()}__", (field.description or "").rstrip("."))


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if inspect.isclass(kind) and issubclass(kind, BaseModel) else None


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def _shown(value: Any) -> str:
    if value is None or isinstance(value, SecretStr):
        return "none"
    if value == () or value == [] or value == {}:
        return "empty"
    if isinstance(value, msgspec.Struct):
        return "`{}`" if value == type(value)() else f"`{msgspec.json.encode(value).decode()}`"
    return f"`{json.dumps(value, default=str)}`"


def _range(field: FieldInfo) -> str:
    words = {"Gt": "> {}", "Ge": ">= {}", "Lt": "< {}", "Le": "<= {}"}
    limits = []
    for limit in field.metadata:
        kind = type(limit).__name__
        if kind in words:
            limits.append(words[kind].format(getattr(limit, kind.lower())))
    if "Literal" in str(field.annotation):
        limits.append(" or ".join(f"`{value}`" for value in get_args(field.annotation)))
    return ", ".join(limits)


def _struct(struct: type[msgspec.Struct]) -> str:
    """A section for a struct: its text, and a table of its fields."""
    text = inspect.cleandoc(struct.__doc__ or "")
    lines = [f"### {struct.__name__}\n", text, "", "| field | default | type |", "| --- | --- | --- |"]
    for field in msgspec.structs.fields(struct):
        default: Any = "required"
        if field.default is not msgspec.NODEFAULT:
            default = _shown(field.default)
        elif field.default_factory is not msgspec.NODEFAULT:
            default = _shown(field.default_factory())
        lines.append(f"| `{field.encode_name}` | {default} | {_escaped(_type(struct, field.name))} |")
    return "\n".join(lines) + "\n"


def _type(struct: type[msgspec.Struct], name: str) -> str:
    """The field's type as JSON Schema calls it, with its limits."""
    _refs, schemas = msgspec.json.schema_components([struct])
    schema = next(one for one in schemas.values() if one.get("title") == struct.__name__)["properties"][name]
    schema = {**schema, **next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), {})}
    kind = (
        schema.get("type")
        or schema.get("$ref", "").rsplit("/", 1)[-1]
        or " or ".join(f"`{value}`" for value in schema.get("enum", []))
    )
    limits = {"minimum": ">= {}", "maximum": "<= {}", "pattern": "matches `{}`", "minItems": "at least {}"}
    return ", ".join([str(kind), *(text.format(schema[key]) for key, text in limits.items() if key in schema)])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    TARGET.write_text(reference())
    metrics_reference.TARGET.write_text(metrics_reference.reference())
    print(f"wrote {TARGET} and {metrics_reference.TARGET}")
