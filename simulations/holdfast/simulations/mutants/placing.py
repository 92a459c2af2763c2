"""Guards of replicas: where they are placed, that each is started once, and how they are replaced and stopped."""

from __future__ import annotations

from typing import Final

from holdfast.actors import replica_main
from holdfast.actors.node import Node
from holdfast.core import applications, membership, placement, reconcile, replica_life
from holdfast.core.placement import Vacancies
from holdfast.simulations.checkers.health import LIVENESS
from holdfast.simulations.checkers.placement import CAPACITY, DRAINS, ORPHANS, PLACEMENTS, UPDATES
from holdfast.simulations.checkers.starts import STARTS
from holdfast.simulations.mutants.edits import edit
from holdfast.simulations.mutants.mutant import Mutant, Setting

MUTANTS: Final = (
    Mutant(
        "taken-up-once",
        "a node takes up a placement once, however long the log takes to tell what became of it",
        (
            edit(
                Node._act,
                (
                    "self._placed = [one for one in self._placed if not self._take_up(group, state, one)]",
                    "[self._take_up(group, state, one) for one in self._placed]",
                ),
            ),
        ),
        (PLACEMENTS,),
        Setting(shape={"lasts_s": 3.0}),
    ),
    Mutant(
        "restarted-node",
        "a node that joins as a new incarnation runs nothing of what its former one ran",
        (
            edit(
                membership._node_joined,
                ('drop_replicas_on(state, fact.node, event.id, f"node {fact.node} restarted")', "state"),
            ),
        ),
        (ORPHANS, LIVENESS),
    ),
    Mutant(
        "gone-node",
        "a replica that was placed on a node which was gone by then counts as ended, and is placed anew",
        (
            edit(
                replica_life._replica_placed,
                ("if not state.takes_part(decision.node, decision.node_incarnation):", "if False:"),
            ),
        ),
        (LIVENESS,),
        Setting(kinds=("node crash", "replica crash", "log: appends late", "log: slow disk"), shape={"operations": 8}),
    ),
    Mutant(
        "disowned",
        "a node says of a replica that was told to stop before it was started that it has ended",
        (edit(Node._take_up, ("self._disown(replica)", "pass")),),
        (LIVENESS,),
        Setting(
            kinds=("freeze", "slow process", "log: slow readers stall"),
            shape={"operations": 24},
            knobs={"lease_ttl_s": 30.0},
        ),
    ),
    Mutant(
        "free-slots",
        "a replica is placed only where a slot is free",
        (
            edit(Vacancies.__init__, (" if used[node.id] < node.slots]", "]")),
            edit(Vacancies.take, ("if used + 1 < node.slots:", "if True:")),
        ),
        (CAPACITY,),
    ),
    Mutant(
        "stopping-holds-slot",
        "a replica that is stopping holds its slot until it has ended",
        (edit(placement.occupancy, ("if replica.status is not ReplicaStatus.EXITED", "if replica.live")),),
        (CAPACITY,),
        Setting(
            shape={"operations": 8, "requests": 60},
            knobs={"slots": 3, "load_s": 0.05, "graceful_shutdown_timeout_s": 3.0, "itl_ms": 120.0},
        ),
    ),
    Mutant(
        "one-at-a-time",
        "an update starts one new replica at a time",
        (edit(reconcile._Standing.missing, ("if self.outdated:", "if False:")),),
        (CAPACITY,),
    ),
    Mutant(
        "never-below-wanted",
        "an update stops an old replica only when a new one runs in its place",
        (
            edit(
                reconcile._stop_surplus,
                ("if replica.id in free:", "if True:"),
            ),
        ),
        (UPDATES,),
    ),
    Mutant(
        "drain-before-stop",
        "a replica that is told to stop lets its streams end first",
        (edit(replica_main._serve, ("await stopping.see_off(replica)", "pass")),),
        (DRAINS,),
    ),
    Mutant(
        "numbers-go-on",
        "a deployment that comes back does not give a replica's number to another one",
        (edit(applications._remember_numbers, ("if application is None:", "if True:")),),
        (PLACEMENTS,),
        Setting(shape={"operations": 8}),
    ),
    Mutant(
        "start-pause",
        "a start that failed is followed by a pause, which doubles with each failure",
        (edit(reconcile._retry_at, ("return since + timedelta(seconds=backoff_s)", "return since")),),
        (STARTS,),
        Setting(kinds=("launch failure", "replica crash", "engine out of memory")),
    ),
)
