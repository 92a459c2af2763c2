"""Settings in the environment that are none, or can't be read: misspelt names must not pass silently, and what is wrong
is told with its name."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard, get_origin

from pydantic import BaseModel

from holdfast.core.errors import InvalidConfig
from holdfast.gateway.leftovers import MARK

PREFIX = "HOLDFAST_"
INTERNAL = frozenset({MARK})

_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")


def check_names(environment: Mapping[str, str], settings: type[BaseModel]) -> None:
    """Raises `InvalidConfig` for a name that begins as a setting does and is none, with the nearest that is one."""
    known = {*setting_names(settings, PREFIX), *INTERNAL}
    unknown = sorted(
        name
        for name, value in environment.items()
        if name.upper().startswith(PREFIX) and name.upper() not in known and not _is_service_link(name, value)
    )
    if unknown:
        raise InvalidConfig("; ".join(_unknown(name, known - INTERNAL) for name in unknown))


def setting_names(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The environment's names for a model's settings; a nested model may also be given as a whole, as JSON."""
    for name, _kind in _settings(model, prefix):
        yield name


def not_json(environment: Mapping[str, str], settings: type[BaseModel]) -> list[str]:
    """The names whose values must be JSON, as lists and whole nested models are, and are none."""
    structured = {
        name for name, kind in _settings(settings, PREFIX) if _is_model(kind) or get_origin(kind) in (tuple, list, dict)
    }
    return sorted(name for name, text in environment.items() if name.upper() in structured and not _is_json(text))


def _settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    """Names in the environment, and what kind of value belongs there."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        yield f"{prefix}{name.upper()}", kind
        if _is_model(kind):
            yield from _settings(kind, f"{prefix}{name.upper()}__")


def _is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    return inspect.isclass(kind) and issubclass(kind, BaseModel)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _is_service_link(name: str, value: str) -> bool:
    """Kubernetes puts such names into every container beside a service called `holdfast`."""
    return _SERVICE_LINK.search(name) is not None or _SERVICE_URL.match(value) is not None


def _unknown(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.0)
    return f"{name} in the environment is no setting of Holdfast: did you mean {nearest[0]}? Mend or unset it"
