"""How a gateway serves streams: limits and times that operators may set."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ServingSettings(BaseModel):
    """How a gateway serves streams."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request_timeout_s: float = Field(
        600.0, gt=0, le=86_400, description="A request ends by then, whatever happens (seconds)."
    )
    replica_wait_s: float = Field(
        30.0, ge=0, le=3_600, description="A stream waits this long for a replica with room before it fails (seconds)."
    )
    migration_limit: int = Field(3, ge=0, le=100, description="A stream may change its replica this often.")
    migration_max_seq_len: int = Field(
        0, ge=0, description="Streams of more tokens than this, prompt included, don't migrate but fail. 0: no limit."
    )
    unsent_tokens_max: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="A stream of which more tokens than this wait for its client leaves its replica until the client "
        "has taken them, and begins again then, which costs its prompt and tokens anew. 0: never.",
    )
    dial_timeout_s: float = Field(1.0, gt=0, le=60, description="Reaching a replica may take this long (seconds).")
    suspicion_phi: float = Field(
        8.0,
        gt=0,
        le=300,
        description="A replica whose silence is this unlikely (phi: once in 10^phi) loses its streams to others. "
        "8 is about half a second with regular heartbeats.",
    )
    heartbeat_timeout_s: float = Field(
        2.0, gt=0, le=600, description="A replica that sends nothing for this long is dialled again (seconds)."
    )
    stream_stall_timeout_s: float = Field(
        10.0,
        gt=0,
        le=3_600,
        description="A stream without a token for this long, while its replica's engine goes on, migrates; without its "
        "first one, if the engine makes none for anybody (seconds).",
    )
