"""Guards of leases and leadership: who decides, who is given up, and how slowly."""

from __future__ import annotations

from typing import Final

from holdfast.actors.controller import Controller
from holdfast.actors.leasing import LeaseSession
from holdfast.actors.node import Node
from holdfast.actors.reach import LogReach
from holdfast.core import reconcile, state
from holdfast.core.detector import LeaseEvidence
from holdfast.gateway.gateway_process import GatewayProcess
from holdfast.simulations.checkers.health import LIVENESS
from holdfast.simulations.checkers.log import FENCES, LEADERS
from holdfast.simulations.checkers.members import LEASES, MEMBERS
from holdfast.simulations.checkers.placement import LOSSES, PLACEMENTS
from holdfast.simulations.mutants.edits import edit
from holdfast.simulations.mutants.mutant import CUT_OFF, STALE, Mutant, Setting
from holdfast.simulations.plan import CORE
from holdfast.store.etcd import EtcdLeases

_DECIDES_ON: Final = (
    edit(
        Controller._check,
        ("if self._follower.state.epoch > epoch:", "if False:"),
        ("if self._session.lease != self._lease:", "if False:"),
    ),
    edit(
        Controller._lead,
        (
            'raise Deposed(f"the log refused a decision, {error}", type_name(proposal.payload)) from error',
            "await self._follower.catch_up()\n"
            "                head = self._follower.state.head(DECISIONS)\n"
            "                break",
        ),
    ),
)
"""A leader goes on whatever it reads, behind whatever others decided."""

_OUTAGES: Final = Setting(
    kinds=("lease server freeze",),
    shape={"faults_min": 6, "faults_max": 10},
    knobs={"lease_servers": 1, "lease_ttl_s": 2.0},
)
"""The only lease server is away, and comes back."""

_NO_LOG: Final = Setting(
    kinds=("log server freeze",),
    shape={"faults_min": 6, "faults_max": 10},
    knobs={"log_servers": 1, "cut_off_timeout_s": 4.0},
)
"""The only log server is away for longer than leaders wait for it, and comes back."""

MUTANTS: Final = (
    Mutant(
        "deposed-leader",
        "a leader stops when its lease is gone, when it reads of another's election, and when the log refuses what it "
        "decides: all are out",
        _DECIDES_ON,
        (FENCES,),
        STALE,
    ),
    Mutant(
        "epoch-check",
        "a deposed leader's decision changes nothing; that there is none is 'deposed-leader': both are out",
        (*_DECIDES_ON, edit(state.apply, ("if event.epoch < state.epoch:", "if False:"))),
        (LEADERS,),
        STALE,
    ),
    Mutant(
        "reads-its-decisions",
        "a leader decides only on a state that includes all that it has decided",
        (edit(Controller._lead, ("await self._follower.reached(head.sequence)", "await asyncio.sleep(0)")),),
        (PLACEMENTS,),
    ),
    Mutant(
        "own-leader-key",
        "a node that made the leader key without learning so finds that it is its own, as the lease client does: "
        "both are out",
        (
            edit(
                EtcdLeases.create,
                ("if answer.again and holder.value == value and holder.lease == lease_id:", "if False:"),
            ),
            edit(Controller._campaign, ("if taken.holder == value:", "if False:")),
        ),
        (LIVENESS,),
        Setting(kinds=("node crash", "leases: answers lost", "leases: timeouts")),
    ),
    Mutant(
        "blast-radius",
        "no more than a part of the replicas is given up on lease evidence in one interval",
        (
            edit(
                reconcile._lost_nodes,
                (
                    "over_budget = given_up > 0 and used[node.id] and given_up + used[node.id] > budget",
                    "over_budget = False",
                ),
            ),
        ),
        (LOSSES,),
        Setting(kinds=("power failure", "freeze", "partition"), knobs={"ends_leases": False}),
    ),
    Mutant(
        "second-look",
        "a lease key that is missing counts only after a while: a full TTL for who was never seen with one",
        (edit(LeaseEvidence.listed, ("known = steady and member in self._seen", "known = True")),),
        (LEASES,),
        _OUTAGES,
    ),
    Mutant(
        "outage-patience",
        "what lease servers say just after they were away counts for nothing: everybody has a full TTL to come back",
        (
            edit(LeaseEvidence.unreachable, ("self._listed_s = None", "return")),
            edit(
                LeaseEvidence._pass_over_silence,
                ("elif (excess_s := now_s - self._listed_s - silence_max_s) > 0:", "elif False:"),
            ),
        ),
        (LEASES,),
        _OUTAGES,
    ),
    Mutant(
        "renewal-in-time",
        "a lease is renewed when half of its remaining time is over, and not when all of it is",
        (
            edit(
                LeaseSession._keep,
                (
                    "asyncio.timeout(remaining_s / 2 * (1 - JITTER * self._rng.random()))",
                    "asyncio.timeout(remaining_s)",
                ),
            ),
        ),
        (LEASES,),
    ),
    Mutant(
        "new-lease",
        "who finds that its lease is gone asks for another",
        (edit(LeaseSession._keep, ("self._lost()", "await asyncio.sleep(RETRY_S)")),),
        (MEMBERS,),
    ),
    Mutant(
        "superseded",
        "a node that the log holds for gone ends, and comes back as a new one",
        (
            edit(
                Node._act,
                ("if status not in (MemberStatus.ALIVE, MemberStatus.STOPPING):", "if False:"),
            ),
        ),
        (MEMBERS, LIVENESS),
        CUT_OFF,
    ),
    Mutant(
        "alone-cut-off",
        "a node without the log gives up its lease only while others reach the log",
        (
            edit(
                LogReach._weigh,
                ("assurances.steady_s() < STEADY_LOOKS * self._look_s * (1 - JITTER) or ", ""),
            ),
        ),
        (LEASES,),
        _NO_LOG,
    ),
    Mutant(
        "rejoins",
        "a gateway that the log holds for lost, and is not, joins again",
        (edit(GatewayProcess._rejoin_when_given_up, ("while True:", "while False:")),),
        (MEMBERS,),
        CUT_OFF,
    ),
    Mutant(
        "lost-gateways",
        "a gateway whose lease is gone is given up",
        (edit(reconcile._lost_gateways, ("MemberStatus.STOPPING) and expired:", "MemberStatus.STOPPING) and False:")),),
        (MEMBERS,),
        Setting(CORE, ("gateway crash",)),
    ),
)
