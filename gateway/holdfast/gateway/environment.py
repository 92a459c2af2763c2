"""Names in the environment that look like settings of Holdfast and are none: misspelt ones must not pass silently."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping

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
    for name, field in model.model_fields.items():
        yield f"{prefix}{name.upper()}"
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            yield from setting_names(kind, f"{prefix}{name.upper()}__")


def _is_service_link(name: str, value: str) -> bool:
    """Kubernetes puts such names into every container beside a service called `holdfast`."""
    return _SERVICE_LINK.search(name) is not None or _SERVICE_URL.match(value) is not None


def _unknown(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.0)
    return f"{name} in the environment is no setting of Holdfast: did you mean {nearest[0]}? Mend or unset it"
