"""How a gateway's links to replicas behave."""

from __future__ import annotations

import msgspec


class LinkSettings(msgspec.Struct, frozen=True):
    """How a link behaves. Times in seconds.

    A replica owes a heartbeat every `heartbeat_interval_s`. When its silence is as unlikely as `suspicion_phi`
    says, its streams migrate and nothing new goes there; after `heartbeat_timeout_s` of silence the connection
    is cut and dialled again. A stream that gets no token for `stream_stall_timeout_s` while the engine goes on
    migrates alone, and so does one that is not taken in for `admission_timeout_s`; without its first token only where
    the engine makes nothing for anybody, and reads no prompt. One of which more than `unsent_tokens_max` tokens wait
    for the client, and more than a part of all it has, is told of, unless that is 0.
    """

    cluster: str
    gateway: str
    dial_timeout_s: float = 1.0
    heartbeat_interval_s: float = 0.1
    heartbeat_timeout_s: float = 2.0
    suspicion_phi: float = 8.0
    stream_stall_timeout_s: float = 10.0
    admission_timeout_s: float = 30.0
    unsent_tokens_max: int = 0
