"""Whatever happens in whatever order, the controller's rules keep their limits and come to rest at the goal.

Nodes, replicas and operators do anything legal at random, races included: facts arrive between the making of a plan
and each of its decisions, as they do on a real log. At any moment the world may be left in peace, and must settle.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, DeploymentState, MemberStatus, ReplicaState, ReplicaStatus
from holdfast.core.config import ApplicationConfig, DeploymentConfig, EngineConfig
from holdfast.core.drains import leaving, nodes_left
from holdfast.core.placement import occupancy
from holdfast.core.reconcile import LOSS_FRACTION_MAX, Evidence, Plan, Proposal, reconcile
from tests.unit.support.history import INFO, History

NODES = ("a", "b", "c")
GATEWAYS = ("g", "h")
IN_THE_CLUSTER = (MemberStatus.ALIVE, MemberStatus.STOPPING)
ROUNDS_MAX = 200
"""Rounds of deciding and obeying after which a world left in peace must be at rest."""

DEPLOYMENTS = st.builds(
    lambda name, engine, replicas: DeploymentConfig(name, EngineConfig("mock", {"kv_blocks": engine}), replicas),
    st.sampled_from(["m", "n"]),
    st.integers(1, 3),
    st.integers(0, 4),
)
APPLICATIONS = st.builds(
    ApplicationConfig,
    st.sampled_from(["app", "web"]),
    st.lists(DEPLOYMENTS, min_size=1, max_size=2, unique_by=lambda deployment: deployment.name),
)
SOMETIMES = st.integers(0, 4).map(lambda draw: draw == 0)


class Machine:
    """A node as it really is. `processes` are those that run; `over` are replicas that ended here."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.life = 0
        self.up = False
        self.processes: dict[str, bool] = {}
        self.over: set[str] = set()

    @property
    def incarnation(self) -> str:
        return f"{self.name}{self.life}"

    def begins(self) -> None:
        self.life += 1
        self.up = True
        self.ends_all()

    def ends_all(self) -> None:
        self.processes.clear()
        self.over.clear()


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.history = History()
        self.machines = {name: Machine(name) for name in NODES}
        self.gateways: dict[str, int] = {}
        self.ever_placed: dict[str, EngineConfig] = {}
        self.ended: set[tuple[str, str]] = set()
        self.plan: list[Proposal] = []
        self.last_fact: tuple[ev.Fact, Machine, str] | None = None

    @property
    def state(self) -> ClusterState:
        return self.history.state

    # --- what happens -----------------------------------------------------------------------------------

    @initialize(slots=st.integers(0, 4), application=APPLICATIONS)
    def begins(self, slots: int, application: ApplicationConfig) -> None:
        self.node_joins("a", slots)
        self.leader_is_elected(1)
        self.operator_deploys(application)

    @rule(name=st.sampled_from(NODES), slots=st.integers(0, 4))
    def node_joins(self, name: str, slots: int) -> None:
        machine = self.machines[name]
        machine.begins()
        self.tells(machine, ev.NodeJoined(name, "host", 1, "0", slots))

    @rule(name=st.sampled_from(NODES), left=st.booleans())
    def node_leaves(self, name: str, left: bool) -> None:
        machine = self.machines[name]
        if machine.up:
            self.tells(machine, ev.NodeStopping(name))
        if machine.up and left:
            self.node_is_off(machine)

    @rule(name=st.sampled_from(NODES))
    def node_dies_silently(self, name: str) -> None:
        self.machines[name].up = False
        self.machines[name].ends_all()

    @rule(data=st.data(), name=st.sampled_from(NODES), bad=SOMETIMES)
    def node_does_something(self, data: st.DataObject, name: str, bad: bool) -> None:
        machine = self.machines[name]
        work = self.work_of(machine)
        if machine.up and work:
            self.advance(machine, data.draw(st.sampled_from(work)), bad)

    @rule(data=st.data(), name=st.sampled_from(NODES), well=SOMETIMES)
    def node_looks_after_a_replica(self, data: st.DataObject, name: str, well: bool) -> None:
        machine = self.machines[name]
        ready = sorted(replica for replica, ready in machine.processes.items() if ready)
        if machine.up and ready:
            replica = data.draw(st.sampled_from(ready))
            sick = ev.ReplicaUnhealthy(replica, name, "canary", "no token")
            self.tells(machine, ev.ReplicaHealthy(replica, name) if well else sick)

    @precondition(lambda self: self.last_fact is not None)
    @rule()
    def a_fact_is_told_twice(self) -> None:
        assert self.last_fact is not None
        fact, machine, incarnation = self.last_fact
        if machine.up and machine.incarnation == incarnation:
            self.tells(machine, fact)

    @rule(name=st.sampled_from(GATEWAYS), leaves=st.booleans())
    def gateway_changes(self, name: str, leaves: bool) -> None:
        if leaves and name in self.gateways:
            self.history.fact(ev.GatewayLeft(name), by=f"gateway.{name}", incarnation=str(self.gateways[name]))
            return
        self.gateways[name] = self.gateways.get(name, 0) + 1
        joined = ev.GatewayJoined(name, "host", 1, "http://x", "0")
        self.history.fact(joined, by=f"gateway.{name}", incarnation=str(self.gateways[name]))

    @rule(application=APPLICATIONS)
    def operator_deploys(self, application: ApplicationConfig) -> None:
        self.history.fact(ev.DeployRequested(application), by="operator.o")

    @rule(name=st.sampled_from(["app", "web", "none"]))
    def operator_deletes(self, name: str) -> None:
        self.history.fact(ev.DeleteRequested(name), by="operator.o")

    @rule(later=st.integers(1, 3))
    def leader_is_elected(self, later: int) -> None:
        self.plan = []
        self.history.decide(ev.LeaderElected("a", "1"), epoch=self.state.epoch + later)

    @rule(
        decision=st.sampled_from(
            [ev.ApplicationDeleted("app"), ev.NodeLost("a", "a1", ""), ev.ReplicaStopOrdered("app.m.1", "")]
        )
    )
    def deposed_leader_decides(self, decision: ev.Decision) -> None:
        before = self.state
        self.history.decide(decision, epoch=self.state.epoch - 1)
        assert self.state.ignored == before.ignored + 1
        assert (self.state.nodes, self.state.replicas) == (before.nodes, before.replicas)
        assert self.state.applications == before.applications

    @rule(seconds=st.sampled_from([0.1, 1.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.history.passes(seconds)

    @rule(data=st.data(), wrong=SOMETIMES, at_most=st.sampled_from([0, 1, 9]))
    def leader_decides(self, data: st.DataObject, wrong: bool, at_most: int) -> None:
        """On lease evidence that may well be `wrong`: a node may live on without its lease.

        What it does not append at once comes later, when it may have become untrue.
        """
        if not self.plan:
            nodes = st.frozensets(st.sampled_from([(node.id, node.incarnation) for node in self.state.nodes.values()]))
            evidence = Evidence(nodes_expired=data.draw(nodes)) if wrong else self.truth()
            self.plan = list(self.planned(evidence).proposals)
        for _ in self.plan[:at_most]:
            self.append(self.plan.pop(0))

    @precondition(lambda self: self.plan)
    @rule()
    def leader_appends_the_rest(self) -> None:
        while self.plan:
            self.append(self.plan.pop(0))

    @rule()
    def world_is_left_in_peace(self) -> None:
        """Dead nodes' leases expire, live nodes obey, nothing fails: it must come to rest, at the goal."""
        self.plan = []
        for _ in range(ROUNDS_MAX):
            obeyed = [self.obeys(machine) for machine in self.machines.values()]
            plan = self.planned(self.truth())
            for proposal in plan.proposals:
                self.append(proposal)
            if not plan.proposals and not any(obeyed):
                if plan.look_again_at is None:
                    break
                self.history.now = max(self.history.now, plan.look_again_at)
        else:
            raise AssertionError(f"no rest after {ROUNDS_MAX} rounds: {plan.proposals}")
        self.check_goal()

    # --- what must hold ---------------------------------------------------------------------------------

    @invariant()
    def no_node_holds_more_than_its_slots(self) -> None:
        used = occupancy(self.state)
        for node in self.state.nodes.values():
            assert used[node.id] <= node.slots

    @invariant()
    def what_is_gone_holds_no_replica(self) -> None:
        for replica in self.state.replicas.values():
            node = self.state.nodes[replica.node]
            here = node.incarnation == replica.node_incarnation and node.status in IN_THE_CLUSTER
            assert here or replica.status is ReplicaStatus.EXITED

    @invariant()
    def an_incarnation_that_ended_stays_ended(self) -> None:
        nodes = [(node.id, node.incarnation, node.status) for node in self.state.nodes.values()]
        gateways = [(gateway.id, gateway.incarnation, gateway.status) for gateway in self.state.gateways.values()]
        for name, incarnation, status in nodes + gateways:
            if status not in IN_THE_CLUSTER:
                self.ended.add((name, incarnation))
            assert ((name, incarnation) in self.ended) == (status not in IN_THE_CLUSTER)

    @invariant()
    def records_of_the_exited_do_not_pile_up(self) -> None:
        exited = Counter(
            (replica.application, replica.deployment)
            for replica in self.state.replicas.values()
            if replica.status is ReplicaStatus.EXITED
        )
        assert all(count <= 12 for count in exited.values())

    def planned(self, evidence: Evidence) -> Plan:
        """The plan, checked for what every single one must keep."""
        plan = reconcile(self.state, evidence, self.history.now)
        assert plan == reconcile(self.state, evidence, self.history.now)
        assert plan.look_again_at is None or plan.look_again_at > self.history.now
        assert len({proposal.payload for proposal in plan.proposals if not _is_deploy(proposal)}) == len(
            [proposal for proposal in plan.proposals if not _is_deploy(proposal)]
        ), "a decision is taken twice"
        self.check_losses([p.payload.node for p in plan.proposals if isinstance(p.payload, ev.NodeLost)])
        self.check_placements([p.payload for p in plan.proposals if _places(p.payload)])  # type: ignore[misc]
        return plan

    def check_losses(self, lost: list[str]) -> None:
        """In one interval, a fifth of the replicas or one node's; nodes without replicas don't count."""
        used = occupancy(self.state)
        recent = self.state.losses
        before = recent.replicas if recent is not None and recent.recent(self.history.now) else 0
        loaded = [node for node in lost if used[node]]
        given_up = before + sum(used[node] for node in loaded)
        one_node = not before and len(loaded) == 1
        assert not loaded or one_node or given_up <= LOSS_FRACTION_MAX * (before + sum(used.values()))

    def check_placements(self, placements: list[ev.ReplicaPlaced | ev.ReplicaReplaced]) -> None:
        used = occupancy(self.state) + Counter(placement.node for placement in placements)
        for placement in placements:
            node = self.state.nodes[placement.node]
            assert node.status is MemberStatus.ALIVE
            assert node.incarnation == placement.node_incarnation
            assert used[node.id] <= node.slots
        for application in self.state.applications.values():
            for deployment in application.deployments.values():
                self.check_number(application.name, deployment, placements)

    def check_number(
        self,
        application: str,
        deployment: DeploymentState,
        placements: list[ev.ReplicaPlaced | ev.ReplicaReplaced],
    ) -> None:
        """A plan never makes more live replicas than wanted, or one more in a rolling update, beside those that go."""
        name = (application, deployment.config.name)
        new = [placement for placement in placements if (placement.application, placement.deployment) == name]
        live = [replica for replica in self.state.replicas_of(*name) if replica.live]
        nodes = nodes_left(self.state)
        going = [
            replica
            for replica in live
            if leaving(replica, nodes) or (replica.unhealthy and replica.revision == deployment.revision)
        ]
        outdated = [one for one in live if one.revision != deployment.revision and one not in going]
        if new:
            current = len(live) - len(outdated) - len(going) + len(new)
            assert current <= deployment.config.num_replicas
            assert not outdated or len(new) <= max(1, len(going))
            row, failed_at = max(deployment.unstable_starts, deployment.breakdowns - 1), deployment.failed_at
            assert row <= 0 or failed_at is None or self.history.now >= failed_at + timedelta(seconds=0.5)

    def check_goal(self) -> None:
        state = self.state
        assert not state.requests
        room = sum(node.slots for node in state.live_nodes())
        deployments = [
            (application.name, deployment)
            for application in state.applications.values()
            for deployment in application.deployments.values()
        ]
        wanted = sum(deployment.config.num_replicas for _, deployment in deployments)
        left = list(state.replicas.values())
        for name, deployment in deployments:
            replicas = list(state.replicas_of(name, deployment.config.name))
            left = [replica for replica in left if replica not in replicas]
            self.check_deployment(deployment, replicas, room > wanted)
        assert not left, "a deployment that is not wanted has replicas"
        outdated = any(
            replica.revision != deployment.revision
            for name, deployment in deployments
            for replica in state.replicas_of(name, deployment.config.name)
        )
        if not outdated:
            assert sum(replica.live for replica in state.replicas.values()) == min(room, wanted)

    def check_deployment(self, deployment: DeploymentState, replicas: list[ReplicaState], room: bool) -> None:
        number = deployment.config.num_replicas
        assert all(replica.status in (ReplicaStatus.RUNNING, ReplicaStatus.EXITED) for replica in replicas)
        assert sum(replica.live for replica in replicas) <= number + 1
        if room:
            assert [replica.status for replica in replicas] == [ReplicaStatus.RUNNING] * number
            assert not any(replica.unhealthy for replica in replicas)
            assert all(self.ever_placed[replica.id] == deployment.config.engine for replica in replicas)

    # --- how it comes about -----------------------------------------------------------------------------

    def tells(self, machine: Machine, fact: ev.Fact) -> None:
        self.last_fact = (fact, machine, machine.incarnation)
        self.history.fact(fact, by=f"node.{machine.name}", incarnation=machine.incarnation)

    def append(self, proposal: Proposal) -> None:
        assert proposal.cause in self.history.ids
        decision = proposal.payload
        if isinstance(decision, ev.ReplicaPlaced | ev.ReplicaReplaced):
            assert decision.replica not in self.ever_placed, "a replica's id is used again"
            goal = self.state.applications[decision.application].deployments[decision.deployment].config
            self.ever_placed[decision.replica] = goal.engine
        self.history.decide(decision, proposal.cause)

    def truth(self) -> Evidence:
        nodes = [node for node in self.state.nodes.values() if node.status in IN_THE_CLUSTER]
        return Evidence(
            frozenset(
                (node.id, node.incarnation)
                for node in nodes
                if not self.machines[node.id].up or self.machines[node.id].incarnation != node.incarnation
            )
        )

    def here(self, machine: Machine) -> MemberStatus | None:
        node = self.state.nodes[machine.name]
        return node.status if node.incarnation == machine.incarnation else None

    def work_of(self, machine: Machine) -> list[str]:
        """Replicas that the machine runs, or should start or disown by what it reads in the log."""
        placed = [
            replica.id
            for replica in self.state.replicas.values()
            if replica.node_incarnation == machine.incarnation and replica.status is not ReplicaStatus.EXITED
        ]
        return sorted({*placed, *machine.processes} - machine.over)

    def advance(self, machine: Machine, replica: str, bad: bool) -> bool:
        """Do the next thing about a replica; whether there was any. `bad`: it fails."""
        known = self.state.replicas.get(replica)
        stop = known is None or not known.live
        if replica not in machine.processes:
            if bad or stop:
                self.ends(machine, replica, None, "" if stop else "no such file", expected=stop)
            elif self.here(machine) is MemberStatus.ALIVE:
                machine.processes[replica] = False
                self.tells(machine, ev.ReplicaStarted(replica, machine.name, 7))
            else:
                return False
        elif bad or stop:
            self.ends(machine, replica, 0 if stop else 1, "", expected=stop)
        elif not machine.processes[replica]:
            machine.processes[replica] = True
            self.tells(machine, ev.ReplicaReady(replica, machine.name, "h:1", INFO))
        else:
            return False
        return True

    def ends(self, machine: Machine, replica: str, code: int | None, message: str, *, expected: bool) -> None:
        machine.processes.pop(replica, None)
        machine.over.add(replica)
        self.tells(machine, ev.ReplicaExited(replica, machine.name, 7, code, None, expected, message))

    def obeys(self, machine: Machine) -> bool:
        """Do everything that the log asks of the machine; whether that was anything."""
        if not machine.up:
            return False
        status = self.here(machine)
        if status not in IN_THE_CLUSTER:
            self.node_dies_silently(machine.name)
            return True
        if status is MemberStatus.STOPPING:
            self.node_is_off(machine)
            return True
        return any([self.advance(machine, replica, False) for replica in self.work_of(machine)])

    def node_is_off(self, machine: Machine) -> None:
        for replica in list(machine.processes):
            self.ends(machine, replica, 0, "", expected=True)
        self.tells(machine, ev.NodeLeft(machine.name))
        machine.up = False


def _is_deploy(proposal: Proposal) -> bool:
    return isinstance(proposal.payload, ev.ApplicationDeployed)


def _places(decision: ev.Decision) -> bool:
    return isinstance(decision, ev.ReplicaPlaced | ev.ReplicaReplaced)


World.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, phases=set(Phase) - {Phase.explain}
)
TestAnyHistory = World.TestCase
