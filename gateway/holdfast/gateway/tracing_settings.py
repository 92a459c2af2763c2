"""Where traces go: settings that operators may set."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TracingSettings(BaseModel):
    """How requests are traced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s]+$",
        description="URL that spans are sent to by OTLP over HTTP, `http://localhost:4318/v1/traces` say; needs "
        "`pip install 'holdfast[otlp]'`. Headers and certificates are OpenTelemetry's own settings "
        "(`OTEL_EXPORTER_OTLP_HEADERS`). By default nothing is traced.",
    )
    sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Part of the requests that are traced of those that come without a `traceparent`; those that come "
        "with one are traced if it says so.",
    )
