"""How a gateway sheds load. A deployment's own thresholds go before these, and those set at run time before both."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from holdfast.core.thresholds import Thresholds


class AdmissionSettings(BaseModel):
    """From when on a gateway rejects requests, and how it treats replicas that serve badly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    active_decode_blocks_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="A replica gets nothing new with more of its KV blocks in use than this part. Unset: 0.95.",
    )
    active_prefill_tokens_threshold: int | None = Field(
        None, ge=0, description="Nor does one with more prompt tokens to read than this."
    )
    active_prefill_tokens_threshold_frac: float | None = Field(
        None,
        ge=0,
        description="The same as a part of the replica's longest context. Unset: 1, if the one in tokens is unset too.",
    )
    requests_in_flight_threshold: int | None = Field(
        None, ge=1, description="Nor does one with so many streams. Unset: as many as its engine runs at once."
    )
    queue_age_threshold_s: float | None = Field(
        None,
        ge=0,
        le=86_400,
        description="Requests are rejected that would wait longer than this for a replica (seconds). Unset: about the "
        "time that an unloaded replica takes to a first token.",
    )
    retry_budget_ratio: float = Field(
        0.2, ge=0, le=100, description="So many streams without a token may begin again elsewhere, per new request."
    )
    retry_budget_min_per_s: float = Field(
        10.0, ge=0, le=1_000_000, description="And so many per second, whatever the number of requests."
    )
    outlier_ejection: bool = Field(
        True, description="Replicas that fail far more often, or take far longer, than the others are passed over."
    )
    outlier_interval_s: float = Field(5.0, gt=0, le=3_600, description="Replicas are compared this often (seconds).")
    outlier_ejection_s: float = Field(
        10.0,
        gt=0,
        le=86_400,
        description="A replica is passed over for so long the first time (seconds), then twice that.",
    )
    outlier_ejection_max_s: float = Field(300.0, gt=0, le=86_400, description="Never longer than this (seconds).")

    def thresholds(self) -> Thresholds:
        """Those of the settings that are thresholds."""
        return Thresholds(
            self.active_decode_blocks_threshold,
            self.active_prefill_tokens_threshold,
            self.active_prefill_tokens_threshold_frac,
            self.requests_in_flight_threshold,
            self.queue_age_threshold_s,
        )
