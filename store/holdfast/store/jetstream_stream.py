"""The stream that holds the log: created with every limit spelled out, or checked when it is there already.

Reasons for the settings: docs/decisions/002-jetstream-settings.md.
"""

from __future__ import annotations

import logging
from typing import Any

from holdfast.core.errors import IncompatibleServer, LogUnavailable
from holdfast.store.jetstream_api import STREAM_NOT_FOUND, ApiError, JetStreamApi
from holdfast.store.settings import JetStreamSettings

logger = logging.getLogger(__name__)

NAME_IN_USE = 10058
NANOSECONDS = 1_000_000_000
UNLIMITED = -1

SUBJECTS = ("decisions", "facts.>")
"""All that the log is made of. Nothing else below the prefix gets into the stream: what can't be read stops it."""

# What must not differ, because history would be lost, changed or acknowledged before it is safe.
REQUIRED: dict[str, Any] = {
    "retention": "limits",
    "storage": "file",
    "discard": "new",
    "discard_new_per_subject": False,
    "max_age": 0,
    "max_msgs": UNLIMITED,
    "max_msgs_per_subject": UNLIMITED,
    "no_ack": False,
    "sealed": False,
    "deny_delete": True,
    "allow_rollup_hdrs": False,
    "allow_msg_ttl": False,
    "mirror": None,
    "sources": None,
    "subject_transform": None,
}
ASYNC_PERSISTENCE = "async"


def subjects(settings: JetStreamSettings) -> list[str]:
    """The stream's subjects as the server knows them."""
    return [f"{settings.subject_prefix}.{subject}" for subject in SUBJECTS]


def stream_config(settings: JetStreamSettings) -> dict[str, Any]:
    """The configuration to create the stream with."""
    return {
        **{name: value for name, value in REQUIRED.items() if value is not None},
        "name": settings.stream,
        "description": "Holdfast: every decision and every fact of one cluster, in one order",
        "subjects": subjects(settings),
        "num_replicas": settings.replicas,
        "max_bytes": settings.max_bytes,
        "max_msg_size": settings.max_message_bytes,
        "max_consumers": UNLIMITED,
        "duplicate_window": int(settings.duplicate_window_s * NANOSECONDS),
        # Trimming below a verified snapshot is a purge, so purges stay allowed.
        "deny_purge": False,
        # A direct read may be answered by a replica that lags; what resolves an append must not be.
        "allow_direct": False,
    }


async def ensure_stream(api: JetStreamApi) -> None:
    """Create the stream, or check and adapt the one there is. Raises `IncompatibleServer`, `LogUnavailable`."""
    settings = api.settings
    try:
        info = await _info_or_create(api)
    except ApiError as error:
        raise IncompatibleServer(
            f"stream {settings.stream} with {settings.replicas} replica(s) of {settings.max_bytes} bytes "
            f"can't be created: {error}; mend the settings (replicas, max_bytes, subject_prefix) or the servers' limits"
        ) from error
    check_stream(info["config"], settings)
    await _adapt(api, info["config"])


def check_stream(found: dict[str, Any], settings: JetStreamSettings) -> None:
    """Raises `IncompatibleServer` naming every setting of an existing stream that the log can't live with."""
    wanted = {**REQUIRED, "num_replicas": settings.replicas}
    wrong = [
        f"{name} is {found.get(name)!r} and must be {value!r}"
        for name, value in wanted.items()
        if (found.get(name) or False) != (value or False)
    ]
    if not _covers(found["subjects"], settings):
        wrong.append(f"subjects is {found['subjects']!r} and must be {subjects(settings)!r}")
    if found.get("persist_mode") == ASYNC_PERSISTENCE:
        wrong.append("persist_mode is 'async' and must be 'default'")
    if 0 <= found.get("max_msg_size", UNLIMITED) < settings.max_message_bytes:
        wrong.append(f"max_msg_size is {found['max_msg_size']}, less than max_message_bytes")
    if wrong:
        raise IncompatibleServer(
            f"stream {settings.stream} differs from what the log needs: {'; '.join(wrong)}. "
            f"Change it (`nats stream edit {settings.stream}`), or name another stream in the settings"
        )


async def _info_or_create(api: JetStreamApi) -> dict[str, Any]:
    try:
        return await api.stream_info(api.settings.open_timeout_s)
    except ApiError as error:
        if error.code != STREAM_NOT_FOUND:
            raise
    try:
        return await api.call(
            f"STREAM.CREATE.{api.settings.stream}",
            stream_config(api.settings),
            timeout_s=api.settings.open_timeout_s,
        )
    except ApiError as error:
        if error.code != NAME_IN_USE:
            raise
    # Another client created it between our two requests, perhaps with other settings.
    return await api.stream_info(api.settings.open_timeout_s)


def _covers(found: list[str], settings: JetStreamSettings) -> bool:
    """Whether a stream takes all that the log needs; streams of earlier versions take all below the prefix."""
    return f"{settings.subject_prefix}.>" in found or set(subjects(settings)) <= set(found)


async def _adapt(api: JetStreamApi, config: dict[str, Any]) -> None:
    """Change what may be changed in a stream that is there already; it works without, if less well."""
    changes: dict[str, Any] = {}
    if 0 <= config["max_bytes"] < api.settings.max_bytes:
        changes["max_bytes"] = api.settings.max_bytes
    if set(config["subjects"]) != set(subjects(api.settings)):
        changes["subjects"] = subjects(api.settings)
    if not changes:
        return
    try:
        await api.call(
            f"STREAM.UPDATE.{api.settings.stream}", {**config, **changes}, timeout_s=api.settings.open_timeout_s
        )
    except (ApiError, LogUnavailable) as error:
        kept = ", ".join(f"{name} {config[name]!r}" for name in changes)
        logger.warning("stream %s keeps its %s: %s", api.settings.stream, kept, error)
