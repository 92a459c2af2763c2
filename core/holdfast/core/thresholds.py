"""From when on a replica is too busy for a new request, as operators may set it. Names are Dynamo's if it has them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
Contexts = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
Streams = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is None follows from what replicas report, or from whoever sets it next.

    A replica above one of the first four gets no new requests until it is below it again; streams that move get in.
    `active_decode_blocks_threshold`: the part of its KV blocks that is in use, 0 to 1.
    `active_prefill_tokens_threshold`: tokens of prompts that it has taken in and not read yet.
    `active_prefill_tokens_threshold_frac`: the same as a part of its longest context; may be above 1.
    `requests_in_flight_threshold`: streams that it has, of all gateways.
    `queue_age_threshold_s`: a request is rejected that would wait longer for a replica (seconds); a critical one
    may wait ten times as long.
    """

    active_decode_blocks_threshold: Fraction | None = None
    active_prefill_tokens_threshold: Tokens | None = None
    active_prefill_tokens_threshold_frac: Contexts | None = None
    requests_in_flight_threshold: Streams | None = None
    queue_age_threshold_s: Seconds | None = None

    def over(self, others: Thresholds) -> Thresholds:
        """These, and the others' where these have none."""
        mine, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(others)
        return Thresholds(**{name: theirs[name] if value is None else value for name, value in mine.items()})


NONE_SET = Thresholds()


class ThresholdChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to become of a model's `Thresholds`: those that are given change, and the others stay as they are.

    None is back to what holds where none is set.
    """

    active_decode_blocks_threshold: Fraction | UnsetType | None = UNSET
    active_prefill_tokens_threshold: Tokens | UnsetType | None = UNSET
    active_prefill_tokens_threshold_frac: Contexts | UnsetType | None = UNSET
    requests_in_flight_threshold: Streams | UnsetType | None = UNSET
    queue_age_threshold_s: Seconds | UnsetType | None = UNSET

    def made_to(self, thresholds: Thresholds) -> Thresholds:
        """The thresholds with these changes."""
        given = {name: getattr(self, name) for name in Thresholds.__struct_fields__}
        return msgspec.structs.replace(
            thresholds, **{name: value for name, value in given.items() if value is not UNSET}
        )


NO_CHANGES = ThresholdChanges()
