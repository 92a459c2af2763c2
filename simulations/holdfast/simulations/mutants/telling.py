"""Guards of what is said: that facts are so, and that replicas are told how long a stream may take."""

from __future__ import annotations

from typing import Final

from holdfast.actors.child import Child
from holdfast.actors.stopping import Stopping
from holdfast.core import replica_life
from holdfast.gateway.dispatch import Dispatch
from holdfast.gateway.draining import GatewayDrain
from holdfast.gateway.link import ReplicaLink
from holdfast.simulations.checkers.draining import TAKEN_OUT
from holdfast.simulations.checkers.facts import FACTS
from holdfast.simulations.checkers.given_up import DEADLINES
from holdfast.simulations.checkers.health import BOUNDS
from holdfast.simulations.mutants.edits import edit
from holdfast.simulations.mutants.mutant import CROWDED, Mutant, Setting

_MANY_STOPS: Final = Setting(
    kinds=("freeze",), shape={"operations": 16, "requests": 40, "faults_min": 20, "faults_max": 24}
)
"""Operators stop replicas all the time, and some stand still."""

_OF_OTHERS: Final = Setting(kinds=("replica told to stop", "replica crash"), shape={"requests": 40})
"""Replicas are told to stop by others than their nodes."""

_LEAVING: Final = Setting(
    kinds=("replica told to stop",),
    shape={"requests": 90, "operations": 12, "replicas": 6},
    knobs={"itl_ms": 250.0, "graceful_shutdown_timeout_s": 0.5, "max_ongoing_requests": 16, "streams_max": 16},
)
"""Replicas are stopped while they have many streams, which take longer than they may."""

_SIGNALLED: Final = Setting(kinds=("freeze", "partition"), shape={"requests": 12})

MUTANTS: Final = (
    Mutant(
        "killed-in-time",
        "a node kills a replica that does not stop in time",
        (edit(Child._stop_when_told, ("process.kill()", "pass")),),
        (FACTS,),
        _MANY_STOPS,
    ),
    Mutant(
        "ends-by-itself",
        "a replica that is told to stop ends by itself within the time that its order gives",
        (edit(Stopping._left_s, ("self.order.deadline_s + LEAVE_S", "10 * (self.order.deadline_s + LEAVE_S)")),),
        (FACTS,),
        _LEAVING,
    ),
    Mutant(
        "unexpected-ends",
        "a replica's end is called expected only where it was told to stop",
        (edit(Child._exited, ("self.ends,", "True,")),),
        (FACTS,),
    ),
    Mutant(
        "drains-in-its-slot",
        "a replica that somebody told to stop holds its slot until it has ended",
        (edit(replica_life._replica_draining, ("status=ReplicaStatus.STOPPING", "status=ReplicaStatus.EXITED")),),
        (FACTS,),
        _OF_OTHERS,
    ),
    Mutant(
        "suspected-no-more",
        "a replica that is heard again is suspected no more in the log",
        (edit(replica_life.without_suspicions_of, ("if gateway in replica.suspected_by:", "if False:")),),
        (FACTS,),
        _SIGNALLED,
    ),
    Mutant(
        "deadline-goes-along",
        "later attempts have their request's deadline as the first one has it",
        (
            edit(
                ReplicaLink.begin,
                ("run.left_s, place.state", "run.left_s if run.ordinal == 1 else 0.0, place.state"),
            ),
        ),
        (DEADLINES,),
    ),
    Mutant(
        "drained-when-empty",
        "a gateway calls itself drained once no request is open there",
        (
            edit(
                GatewayDrain._obey,
                (
                    "turned_away = await",
                    "self._facts.record(GatewayDrained(self._name, 0), drain.event); turned_away = await",
                ),
            ),
        ),
        (TAKEN_OUT,),
        Setting(shape={"operations": 16, "requests": 60}, knobs={"itl_ms": 250.0}),
    ),
    Mutant(
        "leaves-the-queue",
        "a request whose client has gone waits no longer",
        (edit(Dispatch.withdraw, ("run.leave_queue()", "pass")),),
        (BOUNDS,),
        CROWDED,
    ),
)
