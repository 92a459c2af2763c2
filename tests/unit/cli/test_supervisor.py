"""Children that end are started again, and given up when that is futile."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from pathlib import Path

import pytest

from holdfast.core.errors import WorldFailure
from holdfast.gateway import supervisor
from holdfast.gateway.data_dir import ClusterFile, DataDirectory
from holdfast.gateway.goal import Wish
from holdfast.gateway.local_cluster import LocalCluster, Plan
from holdfast.gateway.settings import load_settings
from holdfast.gateway.supervisor import EARLY_DEATHS_MAX, GivenUp, Keeper, describe_ending, stop_all
from holdfast.store.embedded import ChildProcess


class FakeChild:
    """A child that lives until `ends` is set, or ends at once with `dies`."""

    def __init__(self, log_path: Path, *, dies: int | None = None, fails: type[Exception] | None = None) -> None:
        self.name = "child-1"
        self.log_path = log_path
        self.pid: int | None = None
        self.starts = 0
        self.stopped = self.killed = False
        self.ends = asyncio.Event()
        self.started = asyncio.Event()
        self._dies = dies
        self._fails = fails

    async def start(self) -> None:
        self.starts += 1
        self.started.set()
        if self._fails is not None:
            raise self._fails("it did not serve")

    async def wait(self) -> int:
        if self._dies is None:
            await self.ends.wait()
            self.ends.clear()
        return self._dies or 0

    async def stop(self) -> None:
        if self._dies is None:
            await self.ends.wait()
        self.stopped = True

    async def kill(self) -> None:
        self.killed = True


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RESTART_FIRST_S", 0.0)


def keeper(child: FakeChild, said: list[str]) -> Keeper:
    return Keeper(child, changed=lambda: None, say=said.append)


@pytest.mark.memory_network
@pytest.mark.parametrize("fails", [None, WorldFailure, OSError])
async def test_a_child_that_dies_right_at_start_is_given_up_with_its_last_words(
    tmp_path: Path, fails: type[Exception] | None
) -> None:
    log = tmp_path / "log"
    log.write_text("starting\nholdfast: settings: bad port\n\n")
    child = FakeChild(log, dies=2, fails=fails)
    with pytest.raises(GivenUp, match="it did not serve.*bad port" if fails else "bad port"):
        await keeper(child, []).run()
    assert child.starts == EARLY_DEATHS_MAX


@pytest.mark.memory_network
async def test_once_settled_a_child_is_started_again_and_again(tmp_path: Path) -> None:
    child, said = FakeChild(tmp_path / "log"), list[str]()
    kept = keeper(child, said)
    kept.settled = True
    task = asyncio.create_task(kept.run())
    for number in range(1, EARLY_DEATHS_MAX + 3):
        await child.started.wait()
        child.started.clear()
        assert child.starts == number
        assert kept.running.is_set()
        child.ends.set()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert "exit code 0" in said[0]


class Notes:
    """Progress, of which only the notes matter."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.restarting = asyncio.Event()

    def done(self, text: str) -> None: ...

    def waiting(self, text: str) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)
        if "starting it again" in text:
            self.restarting.set()


async def test_a_description_that_can_not_be_written_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, progress = DataDirectory(tmp_path), Notes()

    def full(_described: ClusterFile) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(directory, "write_cluster", full)
    plan = Plan(1, 1, "127.0.0.1", 20000, Wish(), 60.0)
    cluster = LocalCluster(plan, load_settings(), directory, progress)
    child = ChildProcess("child-1", ["/bin/true"], url="", log_path=tmp_path / "log", ready=served)
    async with asyncio.TaskGroup() as group:
        cluster._keep(group, child)
        cluster.settle()
        async with asyncio.timeout(60):
            await progress.restarting.wait()
        cluster.stop_keeping()
    await child.kill()
    assert any("cluster.json is out of date" in note for note in progress.notes)


async def served() -> bool:
    return True


@pytest.mark.memory_network
async def test_the_end_of_each_process_is_told(tmp_path: Path) -> None:
    child, told = FakeChild(tmp_path / "log"), list[int]()
    child.pid = 41
    kept = Keeper(child, changed=lambda: None, say=lambda _: None, ended=told.append)
    kept.settled = True
    task = asyncio.create_task(kept.run())
    await child.started.wait()
    child.started.clear()
    assert told == []
    child.ends.set()
    await child.started.wait()
    assert told == [41]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert told == [41], "one that is not kept any more was told to end"


@pytest.mark.memory_network
async def test_what_does_not_stop_in_time_is_killed(tmp_path: Path) -> None:
    willing, stubborn = FakeChild(tmp_path / "a", dies=0), FakeChild(tmp_path / "b")
    await stop_all([willing, stubborn], 0.01)
    assert (willing.stopped, willing.killed) == (True, False)
    assert (stubborn.stopped, stubborn.killed) == (False, True)


def test_endings_are_told_in_words() -> None:
    assert describe_ending(3) == "exit code 3"
    assert describe_ending(-9) == "SIGKILL"
