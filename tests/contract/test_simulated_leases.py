"""What the `Leases` port promises, by the production adapter over simulated members of etcd: the same suite."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

import pytest

from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import World
from tests.contract import test_leases
from tests.contract.simulated import SimulatedEtcdWorld, run_in

Case = Callable[[SimulatedEtcdWorld], Awaitable[None]]

CASES: list[Case] = [
    case for name, case in vars(test_leases).items() if name.startswith("test_") and inspect.iscoroutinefunction(case)
]


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_contract_holds_over_simulated_members(case: Case, members: int) -> None:
    world = World("contract")
    etcd = SimulatedEtcdWorld(world, members)

    async def main(process: SimProcess) -> None:
        etcd.process = process
        await case(etcd)

    run_in(world, "client", main)
