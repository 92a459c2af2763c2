"""What an operator asks for: applications made of deployments. Decoded strictly, so that a typo is an error.

Names follow Ray Serve's configuration where the meaning is the same.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from holdfast.core.decoding import UNDECODABLE
from holdfast.core.errors import InvalidConfig
from holdfast.core.thresholds import NONE_SET, Thresholds

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
"""Names of clusters, nodes, gateways and applications: lower-case letters, digits and dashes (RFC 1123 label)."""

# Python's `$` would allow a line feed at the end; the pattern itself must stay one that pydantic understands.
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN.removesuffix("$") + r"\Z")]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]

DrainMode = Literal["finish", "migrate"]
"""What becomes of the streams of who is told to go: they may end where they are, until a deadline, and then go
elsewhere; or they go elsewhere at once."""


IMPORT_PATH_PATTERN = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
"""Where an engine's class is: `package.module:Class`."""

Limit = Annotated[float, msgspec.Meta(ge=0.1, le=86_400)]


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which engine a deployment's replicas run, and the engine's own arguments (checked by the engine).

    Kind `class` is a class of the user's own: the argument `import_path` names it, the others go to its constructor.
    """

    kind: Literal["mock", "torch", "class"]
    arguments: dict[str, Any] = {}


class DeploymentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number of equal replicas behind one model name.

    `name` is what clients give as `model`. `max_ongoing_requests` bounds the streams that one gateway has in
    flight on one replica, but for those that it takes over from another gateway. `max_queued_requests` bounds those
    that wait in one gateway for a replica; more are rejected. `graceful_shutdown_timeout_s` is how long a replica that
    is told to stop may finish its streams, before they migrate; with `drain` "migrate" they do so at once.
    A replica whose engine has had work for `engine_stall_timeout_s`, and for far longer than its steps take, without
    making a step is ended and replaced: set it above the longest prefill step of a large model on slow hardware, whose
    other steps are short. Its first steps, while devices warm up and kernels are compiled, may each take
    `engine_first_step_timeout_s`, and so may taking one request in.
    A replica that is not ready `start_timeout_s` after its process was started is stopped, and its start has failed:
    set it above the longest load of a large model from cold storage.
    The engine's own `check_health`, if it has one, is called every `health_check_period_s`. A replica where it fails,
    or takes longer than `health_check_timeout_s`, `health_check_failures` times in a row is unhealthy, and is replaced.
    With `canary`, a replica must make a token from `canary_prompt` before it is ready, and again whenever it has made
    none for `canary_wait_s`: one that does not within `canary_timeout_s` is unhealthy. So is one that has work for both
    of these times, makes steps, reads no prompt, and makes no token for anybody; its streams migrate at once.
    `thresholds`: from when on new requests wait or are rejected; what is not set there is the gateway's setting, or
    follows from what replicas report.
    """

    name: Name
    engine: EngineConfig
    num_replicas: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 1
    max_ongoing_requests: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 256
    max_queued_requests: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 512
    graceful_shutdown_timeout_s: Seconds = 5.0
    drain: DrainMode = "finish"
    engine_stall_timeout_s: Limit = 2.0
    engine_first_step_timeout_s: Limit = 60.0
    start_timeout_s: Limit = 600.0
    health_check_period_s: Limit = 10.0
    health_check_timeout_s: Limit = 30.0
    health_check_failures: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 3
    canary: bool = True
    canary_wait_s: Limit = 10.0
    canary_timeout_s: Limit = 3.0
    canary_prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)] = "Hello"
    thresholds: Thresholds = NONE_SET


class ApplicationConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Deployments that are deployed, updated and deleted together."""

    name: Name
    deployments: Annotated[list[DeploymentConfig], msgspec.Meta(min_length=1, max_length=1_000)]


def parse_application(text: bytes | str) -> ApplicationConfig:
    """Decode an application from JSON. Raises `InvalidConfig` naming the field."""
    try:
        application = msgspec.json.decode(text, type=ApplicationConfig)
    except UNDECODABLE as error:
        raise InvalidConfig(f"application: {error}") from error
    names = [deployment.name for deployment in application.deployments]
    for name in names:
        if names.count(name) > 1:
            raise InvalidConfig(f"application: two deployments are named {name!r}; names must differ")
    for deployment in application.deployments:
        if deployment.engine.kind == "class":
            check_import_path(deployment.engine.arguments)
    return application


def check_import_path(arguments: dict[str, Any]) -> str:
    """Where an engine of kind `class` has its class. Raises `InvalidConfig`."""
    path = arguments.get("import_path")
    if not isinstance(path, str) or not re.fullmatch(IMPORT_PATH_PATTERN, path):
        raise InvalidConfig(
            f'engine of kind class: the argument "import_path" must be "package.module:Class", not {path!r}'
        )
    return path


def check_name(what: str, name: str) -> str:
    """The name, if it is a legal one. Raises `InvalidConfig`."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidConfig(f"{what} {name!r}: use lower-case letters, digits and dashes, at most 63")
    return name
