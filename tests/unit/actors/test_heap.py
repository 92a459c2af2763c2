"""What a process loads once is not looked through for garbage ever after; what comes then is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from holdfast.actors.heap import keep_for_good
from holdfast.actors.replica_main import load_for_good
from holdfast.actors.specification import ReplicaSpecification
from holdfast.core.config import EngineConfig


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


class Ring:
    """Garbage, once nobody has it, that only the collector finds."""

    def __init__(self) -> None:
        self.self = self


def test_what_there_is_stays_and_what_comes_later_goes() -> None:
    before = weakref.ref(ring := Ring())
    keep_for_good()
    assert gc.get_freeze_count() > 0
    after = weakref.ref(Ring())
    del ring
    gc.collect()
    assert before() is not None
    assert after() is None


async def test_a_replicas_process_keeps_its_engine_for_good() -> None:
    assert gc.get_freeze_count() == 0
    engine = await load_for_good(ReplicaSpecification("test", "app.m.1", "m", "127.0.0.1", EngineConfig("mock"), 1.0))
    assert gc.get_freeze_count() > 0
    assert engine.info.model == "m"
