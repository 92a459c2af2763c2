"""Guards of the log: what is appended, once and by whom, and that it is read without holes."""

from __future__ import annotations

from typing import Final

from holdfast.core import state
from holdfast.simulations.checkers.health import LIVENESS, QUIET
from holdfast.simulations.checkers.log import DURABILITY, FOLD
from holdfast.simulations.mutants.edits import edit
from holdfast.simulations.mutants.mutant import STALE, Mutant, Setting
from holdfast.store import jetstream_follow
from holdfast.store.jetstream import JetStreamLog
from holdfast.store.nats_session import Session

_OURS: Final = "following is not None and following.message_id == message_id"

_GAPS: Final = Setting(kinds=("log: gaps", "replica crash", "node crash"))
"""Deliveries of the log are lost while much happens."""

MUTANTS: Final = (
    Mutant(
        "expected-sequence",
        "an append names the last sequence of its subject, so that the servers refuse it after anybody else's",
        (
            edit(
                JetStreamLog._publish,
                (
                    "{MESSAGE_ID_HEADER: message_id, EXPECTED_HEADER: str(expected_last)}",
                    "{MESSAGE_ID_HEADER: message_id}",
                ),
            ),
        ),
        (FOLD,),
        STALE,
    ),
    Mutant(
        "entry-of-another",
        "an entry that stands where ours should is ours only if it has our message id",
        (
            edit(JetStreamLog._resolve, (_OURS, "following is not None")),
            edit(JetStreamLog._resolve_duplicate, (_OURS, "following is not None")),
        ),
        (DURABILITY,),
        STALE,
    ),
    Mutant(
        "own-entry",
        "an append whose answer was lost is found again by its message id, and counts as done",
        (
            edit(JetStreamLog._resolve, (_OURS, "False")),
            edit(JetStreamLog._resolve_duplicate, (_OURS, "False")),
        ),
        (QUIET,),
    ),
    Mutant(
        "unknown-outcome",
        "an append that was not answered is sent again until its outcome is known, and never taken for done",
        (
            edit(
                JetStreamLog.append,
                (
                    "problem = str(error) or type(error).__name__\n",
                    "return expected_last + 1\n",
                ),
            ),
        ),
        (DURABILITY,),
    ),
    Mutant(
        "log-contiguity",
        "a reader of the log takes only the next sequence, and asks again for what was left out",
        (edit(jetstream_follow.Follower._until_renewal, ("if sequence > self._position + 1:", "if False:")),),
        (LIVENESS, QUIET),
        _GAPS,
    ),
    Mutant(
        "hole-in-the-fold",
        "a hole is noticed when the log is read, when a record is folded, and by the hash chain: all three are out",
        (
            edit(jetstream_follow.Follower._until_renewal, ("if sequence > self._position + 1:", "if False:")),
            edit(
                state._check_order,
                ("if record.sequence != state.sequence + 1:", "if False:"),
                ("if record.event.previous != state.head(record.subject).digest:", "if False:"),
            ),
        ),
        (FOLD,),
        _GAPS,
    ),
    Mutant(
        "silent-consumer",
        "a consumer that does not even send heartbeats is given up for a new one, and sooner where an answer tells "
        "that the log goes on: both are out",
        (
            edit(jetstream_follow._Consumer._wait, ("self.silence_max_s", "1e9")),
            edit(jetstream_follow._Consumer._told, ("last > self.position", "False")),
        ),
        (LIVENESS,),
    ),
    Mutant(
        "log-redial",
        "a connection to the log's servers that was lost is dialled again, for ever",
        (edit(Session._supervise, ("while True:", "while not self._was_connected:")),),
        (LIVENESS,),
    ),
)
