"""The settings of a gateway's HTTP side."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from holdfast.store.settings import number

Key = Annotated[SecretStr, Field(min_length=1)]
"""An API key. An empty one, as of a template's unset variable, would let in who sends none behind `Bearer`."""


class HttpSettings(BaseModel):
    """What the HTTP side of one gateway allows. Frozen: a change takes a new app."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_keys: tuple[Key, ...] = Field(
        default=(),
        description="Keys of which a client must send one as `Authorization: Bearer <key>` on `/v1`. None: open.",
    )
    admin_keys: tuple[Key, ...] = Field(
        default=(),
        description="API keys that may also see and cancel all requests (`/v1/requests`), not only those of their own. "
        "Where there are any, only they may change thresholds (`POST /busy_threshold`).",
    )
    priority_max: Literal["critical", "default", "batch"] = Field(
        default="critical",
        description="The highest `x-holdfast-priority` that a request may claim without a key of `admin_keys`. "
        "A higher one gets 403.",
    )
    overload_status: Annotated[Literal[503, 429, 529], BeforeValidator(number)] = Field(
        default=503, description="The status of rejections: 503, 429 or 529."
    )
    requests_max: Annotated[int, Field(ge=1)] = Field(
        default=16_384,
        description="Requests for tokens that the gateway has open at once. More are rejected before they are read.",
    )
    body_bytes_max: Annotated[int, Field(ge=1)] = Field(
        default=4 * 1024 * 1024, description="The longest request body, in bytes. A longer one gets 413."
    )
    bodies_bytes_max: Annotated[int, Field(ge=1)] = Field(
        default=1024 * 1024 * 1024,
        description="So much of all requests' bodies is held at once, in bytes, each until its answer begins. Requests "
        "for tokens that bring more are rejected. Not below `body_bytes_max`.",
    )
    body_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=30.0, description="How long a client may take to send its body, in seconds. A slower one gets 408."
    )
    write_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0,
        description="How long a client may take nothing of its answer, in seconds. A slower one is disconnected, "
        "and so is one that takes less than about 2 KB a second, some time after its buffers are full.",
    )
    n_max: Annotated[int, Field(ge=1, le=128)] = Field(
        default=16, description="The largest `n`, in choices per prompt."
    )
    choices_max: Annotated[int, Field(ge=1)] = Field(
        default=128, description="The most choices of one request: its prompts times `n`."
    )
    stop_sequences_max: Annotated[int, Field(ge=0, le=64)] = Field(
        default=4, description="The most stop sequences of one request. 4 is OpenAI's limit."
    )
    stop_chars_max: Annotated[int, Field(ge=1)] = Field(
        default=256, description="The longest stop sequence, in characters. Text that may begin one is held back."
    )

    @model_validator(mode="after")
    def _one_body_has_room(self) -> HttpSettings:
        if self.bodies_bytes_max < self.body_bytes_max:
            raise ValueError("bodies_bytes_max must not be below body_bytes_max: the longest body has to fit")
        return self
