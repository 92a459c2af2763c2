"""All kinds of faults, and which of them a run has, and when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from holdfast.simulations.faults.injection import Kind
from holdfast.simulations.faults.machines import MACHINE_KINDS
from holdfast.simulations.faults.network import NETWORK_KINDS
from holdfast.simulations.faults.processes import PROCESS_KINDS
from holdfast.simulations.faults.servers import LEASE_KINDS, LEASES, LOG, LOG_KINDS
from holdfast.simulations.plan import Fault, Knobs, Scenario

KINDS: dict[str, Kind] = {**PROCESS_KINDS, **NETWORK_KINDS, **MACHINE_KINDS, **LOG_KINDS, **LEASE_KINDS}
"""All kinds, by name."""

LASTING = frozenset(
    {
        "node crash",
        "gateway crash",
        "freeze",
        "slow process",
        "power failure",
        "partition",
        "one-way partition",
        "engine hangs",
        "slow engine",
        "barren engine",
        "failing health check",
        "launch failure",
        "delay",
    }
)
"""Those that can stay for ever beside a healthy core, which must do without the members that they befall."""


def draw_faults(rng: Random, scenario: Scenario, knobs: Knobs, among: Sequence[str] = ()) -> tuple[Fault, ...]:
    """The faults of a run, by their times: of these kinds alone, each as often as it is named, if any are.

    Else of those that can strike servers of which there are as many as `knobs` say.
    """
    among = among or scenario.kinds
    single = {LOG: knobs.log_servers == 1, LEASES: knobs.lease_servers == 1}
    names = [
        name
        for name, kind in KINDS.items()
        for _ in range(among.count(name) if among else not single.get(kind.several, False))
        if scenario.heals or name in LASTING
    ]
    weights = [1.0 if among else KINDS[name].weight for name in names]
    drawn = []
    for _ in range(rng.randint(scenario.faults_min, scenario.faults_max)):
        name = rng.choices(names, weights)[0]
        at_s = rng.uniform(scenario.faults_from_s, scenario.faults_until_s)
        low_s, high_s = KINDS[name].lasts_s
        if high_s:
            low_s, high_s = max(low_s, scenario.shortest_s), min(high_s, scenario.longest_s)
        # Short ones are as likely as long ones by their order of magnitude.
        lasts_s = math.exp(rng.uniform(math.log(low_s), math.log(high_s))) if high_s else 0.0
        lasts_s = min(lasts_s, scenario.healed_s - at_s)
        drawn.append((at_s, name, lasts_s, rng.random(), rng.random()))
    return tuple(Fault(number, *what) for number, what in enumerate(sorted(drawn)))
