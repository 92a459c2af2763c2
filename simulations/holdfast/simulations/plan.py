"""What a run will be, all of it drawn before it begins: settings, faults, work.

Each part has a generator of its own, so that a run without one of its faults is otherwise the same run.
"""

from __future__ import annotations

from random import Random

import msgspec

from holdfast.simulations.work.items import WorkItem

STANDARD = "standard"
CORE = "core"
BUSY = "busy"
UNEVEN = "uneven"


BUSY_KINDS = (
    *("freeze",) * 8,
    *("engine loses stream",) * 4,
    "engine hangs",
    "barren engine",
    "one-way partition",
    "reset connection",
    "replica crash",
    "gateway crash",
    "failing health check",
    "wrong-length answer",
)
"""What befalls a cluster that is busy: mostly its replicas, and the ways to them."""


UNEVEN_KINDS = (
    *("flapping link",) * 5,
    *("slow engine",) * 5,
    "freeze",
    "replica crash",
    "engine loses stream",
    "reset connection",
)
"""What makes some replicas serve worse than others."""


class Scenario(msgspec.Struct, frozen=True):
    """A kind of run. Times in virtual seconds.

    Faults begin between `faults_from_s` and `faults_until_s`, and are over by `healed_s`, until when `requests` are
    asked; `late_requests` more are asked between `late_from_s` and `late_until_s`, of a cluster that should be well.
    With `heals` False (liveness) some members are named the healthy core, to which nothing happens, and what befalls
    the others is never over. The first `poisoned` requests break each engine that takes them in. Only faults of these
    `kinds` are drawn, if there are any, each as often as it stands there; those that last do so between `shortest_s`
    and `longest_s`. With `busy` True there is little room, and everybody looks about often. With `uneven` True requests
    come evenly, and gateways compare replicas often, by little, and try little again.
    Checkers that are `idle` may find nothing to judge in it, however many the seeds.
    """

    name: str
    nodes: int = 3
    replicas: int = 6
    gateways: int = 2
    lasts_s: float = 60.0
    faults_from_s: float = 2.0
    faults_until_s: float = 36.0
    healed_s: float = 40.0
    late_from_s: float = 44.0
    late_until_s: float = 52.0
    faults_min: int = 32
    faults_max: int = 35
    requests: int = 9
    late_requests: int = 3
    operations: int = 2
    heals: bool = True
    poisoned: int = 0
    kinds: tuple[str, ...] = ()
    shortest_s: float = 0.0
    longest_s: float = 60.0
    busy: bool = False
    uneven: bool = False
    idle: tuple[str, ...] = ()

    @property
    def core_nodes(self) -> int:
        """How many nodes stay healthy where nothing heals."""
        return -(-self.nodes // 2)


SCENARIOS = {
    STANDARD: Scenario(STANDARD, idle=("ejections", "moves")),
    CORE: Scenario(
        CORE,
        nodes=5,
        replicas=4,
        gateways=3,
        faults_min=8,
        faults_max=14,
        requests=12,
        late_requests=4,
        operations=3,
        heals=False,
        idle=("cancels", "shedding", "retries", "ejections", "moves", "losses"),
    ),
    "short": Scenario(
        "short",
        nodes=2,
        replicas=3,
        lasts_s=30.0,
        faults_from_s=1.5,
        faults_until_s=9.0,
        healed_s=11.0,
        late_from_s=15.0,
        late_until_s=24.0,
        faults_min=8,
        faults_max=12,
        requests=6,
        late_requests=2,
        operations=1,
        idle=("retries", "ejections", "moves", "losses"),
    ),
    BUSY: Scenario(
        BUSY,
        nodes=2,
        replicas=6,
        lasts_s=44.0,
        faults_from_s=9.0,
        faults_until_s=20.0,
        healed_s=26.0,
        late_from_s=30.0,
        late_until_s=38.0,
        faults_min=4,
        faults_max=7,
        requests=60,
        late_requests=4,
        operations=0,
        kinds=BUSY_KINDS,
        shortest_s=5.0,
        longest_s=8.0,
        busy=True,
        idle=("retries", "ejections", "losses", "updates", "routable", "taken_out"),
    ),
    UNEVEN: Scenario(
        UNEVEN,
        nodes=2,
        replicas=6,
        lasts_s=44.0,
        faults_from_s=6.0,
        faults_until_s=22.0,
        healed_s=26.0,
        late_from_s=30.0,
        late_until_s=38.0,
        faults_min=4,
        faults_max=7,
        requests=180,
        late_requests=4,
        operations=0,
        kinds=UNEVEN_KINDS,
        shortest_s=3.0,
        longest_s=8.0,
        uneven=True,
        idle=("losses", "updates", "routable", "taken_out"),
    ),
    "calm": Scenario(
        "calm",
        faults_min=0,
        faults_max=0,
        idle=("shedding", "retries", "ejections", "moves", "starts", "losses", "leases", "sickness"),
    ),
}
"""The scenarios by name: faults that heal, faults that never do beside a healthy core, a small cluster for half as long
(for very many seeds), one that has more work than room and faults that outlast all bounds, one some of whose replicas
serve far worse than others, and no faults at all."""


class Knobs(msgspec.Struct, frozen=True):
    """Settings of everything in the cluster. Times in seconds but for the engines', which are in milliseconds."""

    log_servers: int = 1
    lease_servers: int = 1
    lease_ttl_s: float = 3.0
    heartbeat_interval_s: float = 0.5
    heartbeat_timeout_s: float = 4.0
    suspicion_phi: float = 8.0
    stream_stall_timeout_s: float = 10.0
    engine_stall_timeout_s: float = 2.0
    engine_first_step_timeout_s: float = 3.0
    replica_wait_s: float = 10.0
    request_timeout_s: float = 30.0
    migration_limit: int = 10
    slots: int = 4
    max_ongoing_requests: int = 16
    max_queued_requests: int = 16
    queue_age_threshold_s: float = 0.0
    itl_ms: float = 60.0
    ttft_ms: float = 30.0
    kv_blocks: int = 256
    streams_max: int = 16
    graceful_shutdown_timeout_s: float = 3.0
    drain_timeout_s: float = 3.0
    node_drain_timeout_s: float = 20.0
    restart_s: float = 1.0
    load_s: float = 0.3
    ends_leases: bool = True
    sync_always: bool = True
    append_timeout_s: float = 6.0
    follow_heartbeat_s: float = 2.0
    lease_request_timeout_s: float = 3.0
    watch_silence_s: float = 3.0
    write_timeout_s: float = 4.0
    canary_wait_s: float = 3.0
    canary_timeout_s: float = 2.0
    health_check_period_s: float = 2.0
    health_check_failures: int = 2
    start_timeout_s: float = 600.0
    cut_off_timeout_s: float = 6.0
    outlier_interval_s: float = 5.0
    outlier_requests_min: int = 10
    outlier_window_s: float = 60.0
    outlier_ejection_s: float = 10.0
    outlier_ejection_max_s: float = 300.0
    retry_budget_ratio: float = 0.2
    retry_budget_min_per_s: float = 10.0
    retry_budget_burst: int = 100


class Fault(msgspec.Struct, frozen=True):
    """Something breaks at `at_s` for `lasts_s` (0: at once over). `pick` and `amount` (0 to 1) say which and how much:
    the injector turns them into a member that is there at that time, and into a delay, a probability or a size.
    """

    number: int
    at_s: float
    kind: str
    lasts_s: float
    pick: float
    amount: float


class Plan(msgspec.Struct, frozen=True):
    """One run, but for the order of turns and the network's pace, which follow from the seed while it goes."""

    seed: int
    scenario: Scenario
    knobs: Knobs
    faults: tuple[Fault, ...]
    work: tuple[WorkItem, ...]
    lasts_s: float


def draw_knobs(rng: Random, scenario: Scenario) -> Knobs:
    """Settings within what their users may set, most of them where they are tight."""
    # What looks about all the time is most of what a run costs: as often as a healthy core needs to be well in time.
    heartbeat_s = rng.choice((2.5, 3.0) if scenario.heals else (1.0, 2.0))
    log_servers = rng.choice((1, 3))
    ttl_s = rng.choice((4.0, 6.0) if scenario.heals else (2.0, 4.0, 6.0))
    spare = rng.randint(0, 2)
    nodes = scenario.nodes - 1 if scenario.heals else scenario.core_nodes
    drawn = Knobs(
        log_servers=log_servers,
        lease_servers=rng.choice((1, 3)),
        lease_ttl_s=ttl_s,
        heartbeat_interval_s=heartbeat_s,
        heartbeat_timeout_s=heartbeat_s * rng.choice((4,) if scenario.heals else (4, 5)),
        suspicion_phi=rng.choice((4.0, 8.0, 12.0)),
        stream_stall_timeout_s=rng.choice((5.0, 10.0)),
        replica_wait_s=rng.choice((2.0, 5.0, 10.0)),
        request_timeout_s=rng.choice((15.0, 30.0)),
        migration_limit=rng.choice((0, 3, 10)),
        slots=-(-(scenario.replicas + 1) // max(1, nodes)) + spare,
        max_ongoing_requests=rng.choice((4, 16)),
        max_queued_requests=rng.choice((2, 16)),
        itl_ms=rng.choice((20.0, 60.0, 120.0)),
        ttft_ms=rng.choice((0.0, 30.0)),
        kv_blocks=rng.choice((24, 64, 256)),
        streams_max=rng.choice((4, 16)),
        graceful_shutdown_timeout_s=rng.choice((0.5, 3.0)),
        drain_timeout_s=rng.choice((0.5, 3.0)),
        # Where nobody has room for what it runs, a node that is told to stop goes on for so long, and then is started
        # again: with the rest of a healthy core within 18 s.
        node_drain_timeout_s=20.0 if scenario.heals else 5.0,
        restart_s=rng.choice((0.2, 1.0, 3.0)),
        load_s=rng.choice((0.05, 0.3, 1.0)),
        ends_leases=rng.random() < 0.5,
        # Elections among three take longer than this would be for one.
        append_timeout_s=rng.choice((3.0, 6.0, 12.0) if log_servers == 1 else (15.0, 20.0)),
        follow_heartbeat_s=rng.choice((3.0, 4.0) if scenario.heals else (2.0, 3.0, 4.0)),
        lease_request_timeout_s=rng.choice((2.0, 4.0)),
        watch_silence_s=rng.choice((5.0, 8.0)),
        write_timeout_s=rng.choice((2.0, 8.0)),
        queue_age_threshold_s=rng.choice((0.0, 0.0, 1.0, 20.0)),
        canary_wait_s=rng.choice((8.0, 12.0) if scenario.heals else (3.0, 5.0)),
        canary_timeout_s=rng.choice((1.0, 2.0)),
        health_check_period_s=rng.choice((4.0, 6.0) if scenario.heals else (2.0, 4.0)),
        health_check_failures=rng.choice((1, 2)),
        start_timeout_s=8.0 if scenario.heals else 5.0,
        # Beside a healthy core all has to be well within 18 s: a leader may be cut off, and then go on to be as a node.
        cut_off_timeout_s=rng.choice((12.0, 20.0) if scenario.heals else (4.0, 6.0)),
    )
    if scenario.uneven:
        return _uneven(rng, drawn)
    return _busy(rng, drawn) if scenario.busy else drawn


def _busy(rng: Random, knobs: Knobs) -> Knobs:
    """The same for a cluster with more work than room, whose bounds are short beside what befalls it."""
    return msgspec.structs.replace(
        knobs,
        lease_ttl_s=rng.choice((6.0, 10.0)),
        heartbeat_interval_s=0.5,
        heartbeat_timeout_s=2.0,
        stream_stall_timeout_s=rng.choice((1.0, 2.0)),
        migration_limit=rng.choice((3, 10)),
        max_ongoing_requests=rng.choice((1, 4, 16)),
        max_queued_requests=rng.choice((2, 4)),
        itl_ms=rng.choice((20.0, 60.0, 120.0)),
        kv_blocks=256,
        streams_max=16,
        canary_wait_s=rng.choice((3.0, 5.0)),
        health_check_period_s=2.0,
    )


def _uneven(rng: Random, knobs: Knobs) -> Knobs:
    """The same where replicas are compared within a run, and where little is tried again."""
    return msgspec.structs.replace(
        knobs,
        lease_ttl_s=rng.choice((6.0, 10.0)),
        heartbeat_interval_s=0.5,
        heartbeat_timeout_s=2.0,
        stream_stall_timeout_s=rng.choice((1.0, 2.0)),
        migration_limit=rng.choice((3, 10)),
        max_ongoing_requests=16,
        max_queued_requests=16,
        itl_ms=rng.choice((20.0, 60.0)),
        ttft_ms=rng.choice((30.0, 600.0)),
        kv_blocks=rng.choice((64, 256)),
        streams_max=16,
        canary_wait_s=rng.choice((3.0, 5.0)),
        health_check_period_s=2.0,
        outlier_interval_s=rng.choice((0.5, 1.0)),
        outlier_requests_min=rng.choice((3, 5, 10)),
        outlier_window_s=rng.choice((8.0, 16.0)),
        outlier_ejection_s=rng.choice((1.0, 3.0)),
        outlier_ejection_max_s=rng.choice((4.0, 8.0)),
        retry_budget_ratio=rng.choice((0.0, 0.1)),
        retry_budget_min_per_s=rng.choice((0.1, 1.0)),
        retry_budget_burst=rng.choice((0, 2)),
    )
