"""How a gateway sheds load. A deployment's own thresholds go before these, and those set at run time before both."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from holdfast.core.budget import BURST_MIN
from holdfast.core.outliers import USUAL, Rules
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
    retry_budget_burst: int = Field(
        BURST_MIN,
        ge=0,
        le=1_000_000,
        description="So many of them at once, however few come; never fewer than streams are open.",
    )
    outlier_ejection: bool = Field(
        True, description="Replicas that fail far more often, or take far longer, than the others are passed over."
    )
    outlier_interval_s: float = Field(5.0, gt=0, le=3_600, description="Replicas are compared this often (seconds).")
    outlier_requests_min: int = Field(
        USUAL.requests_min,
        ge=1,
        le=1_000_000,
        description="A replica is judged by so many attempts, or first tokens, at least; or by its last ones, if all "
        "of these failed, or were slow.",
    )
    outlier_window_s: float = Field(
        USUAL.window_s,
        gt=0,
        le=86_400,
        description="What was longer ago than this (seconds) is not among them; of its last ones, longer than 600.",
    )
    outlier_ejection_s: float = Field(
        USUAL.first_s,
        gt=0,
        le=86_400,
        description="A replica is passed over for so long the first time (seconds), then twice that.",
    )
    outlier_ejection_max_s: float = Field(
        USUAL.longest_s, gt=0, le=86_400, description="Never longer than this (seconds)."
    )

    def outlier_rules(self) -> Rules:
        """From when on replicas are judged, and for how long they are passed over."""
        return Rules(
            self.outlier_requests_min, self.outlier_window_s, self.outlier_ejection_s, self.outlier_ejection_max_s
        )

    def thresholds(self) -> Thresholds:
        """Those of the settings that are thresholds."""
        return Thresholds(
            self.active_decode_blocks_threshold,
            self.active_prefill_tokens_threshold,
            self.active_prefill_tokens_threshold_frac,
            self.requests_in_flight_threshold,
            self.queue_age_threshold_s,
        )
