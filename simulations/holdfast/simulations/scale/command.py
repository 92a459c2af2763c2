"""`holdfast sim scale`: what large clusters cost, as a table or as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.status import Status

from holdfast.core.errors import Misuse
from holdfast.gateway.cli.tables import console, print_json, table
from holdfast.simulations.scale.apart import run_scale
from holdfast.simulations.scale.scale import ScaleReport

Size = tuple[int, int, int]
"""Nodes, replicas, gateways."""

SIZES: tuple[Size, ...] = ((10, 100, 2), (100, 1_000, 5), (1_000, 10_000, 50))
REPLICAS_PER_NODE = 10
NODES_PER_GATEWAY = 20
GATEWAYS_MIN = 2
NODES_MIN = 6
"""With fewer the replicas of lost nodes would find no room on the others (`SPARE`)."""

Row = tuple[str, Callable[[ScaleReport], str]]

ROWS: tuple[Row, ...] = (
    ("nodes", lambda one: f"{one.nodes:,}"),
    ("replicas", lambda one: f"{one.replicas:,}"),
    ("gateways", lambda one: f"{one.gateways:,}"),
    ("heartbeats every (s)", lambda one: f"{one.heartbeat_interval_s:g}"),
    ("start: until all replicas run (s)", lambda one: f"{one.start_s:.1f}"),
    ("start: events in the log", lambda one: f"{one.start_events:,}"),
    ("log: bytes an event", lambda one: f"{one.event_bytes:.0f}"),
    ("log: events/s, most", lambda one: f"{one.events_per_s_max:,}"),
    ("log: decisions/s, most", lambda one: f"{one.decisions_per_s_max:,}"),
    ("log: events/s, nothing happens", lambda one: f"{one.quiet_events_per_s:g}"),
    ("controller: CPU a decision (ms)", lambda one: f"{one.decision_cpu_s * 1e3:.2f}"),
    ("controller: longest look (ms)", lambda one: f"{one.look_cpu_max_s * 1e3:.1f}"),
    ("leases: requests/s, nothing happens", lambda one: f"{one.quiet_lease_requests_per_s:.0f}"),
    ("leases: bytes/s listed to the leader", lambda one: f"{one.quiet_listed_bytes_per_s:,.0f}"),
    ("nodes lost at once", lambda one: f"{one.lost_nodes:,}"),
    ("replicas lost with them", lambda one: f"{one.lost_replicas:,}"),
    ("loss: events in the log", lambda one: f"{one.loss_events:,}"),
    ("loss: all given up after (s)", lambda one: f"{one.known_after_s:.1f}"),
    ("loss: all replaced after (s)", lambda one: f"{one.decided_after_s:.1f}"),
    ("loss: full strength after (s)", lambda one: f"{one.running_after_s:.1f}"),
    ("loss: all gateways reach all after (s)", lambda one: f"{one.linked_after_s:.2f}"),
    ("loss of the leader: full strength after (s)", lambda one: f"{one.leader_loss_running_after_s:.1f}"),
    ("loss of the leader: lease requests until the next", lambda one: f"{one.leader_loss_lease_requests:,}"),
    ("gateway: CPU a heartbeat (µs)", lambda one: f"{one.beat_cpu_s * 1e6:.0f}"),
    ("memory: state in each member (MB)", lambda one: f"{one.follower_bytes / 1e6:.2f}"),
    ("this machine: CPU for the run (s)", lambda one: f"{one.cpu_s:.0f}"),
    ("this machine: memory for the run (GB)", lambda one: f"{one.memory_bytes / 1e9:.2f}"),
)


def sizes_for(nodes: int | None, replicas: int | None, gateways: int | None) -> Sequence[Size]:
    """The sizes that are asked for: those of the table, or one, of which what is not given follows from the nodes.

    Raises `Misuse` for fewer replicas than nodes.
    """
    if nodes is None and replicas is None and gateways is None:
        return SIZES
    nodes = nodes or max(NODES_MIN, (replicas or 0) // REPLICAS_PER_NODE)
    replicas = replicas or nodes * REPLICAS_PER_NODE
    if replicas < nodes:
        raise Misuse(f"--replicas: {nodes} nodes need at least {nodes}, so that each node that is lost had one")
    return [(nodes, replicas, gateways or max(GATEWAYS_MIN, nodes // NODES_PER_GATEWAY))]


def scale(sizes: Sequence[Size], *, as_json: bool) -> int:
    """Measure clusters of these sizes, one after the other. Raises `WorldFailure` when one never gets whole."""
    with Console(stderr=True, highlight=False).status("starting") as status:
        reports = [_one(size, status) for size in sizes]
    if as_json:
        print_json(reports)
    else:
        rows = [(name, *(shown(report) for report in reports)) for name, shown in ROWS]
        made = table("Virtual seconds, but for CPU", ["", *("" for _ in reports)], rows)
        for column in made.columns[1:]:
            column.justify = "right"
        console().print(made)
    return 0


def _one(size: Size, status: Status) -> ScaleReport:
    nodes, replicas, gateways = size
    what = f"{nodes:,} nodes, {replicas:,} replicas, {gateways:,} gateways"
    return run_scale(nodes, replicas, gateways, lambda phase: status.update(f"{what}: {phase}"))
