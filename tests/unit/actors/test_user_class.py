"""An engine of the user's own is made as told, or what is wrong with it is said in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.actors.engines.base import Engine
from holdfast.actors.engines.user_class import check_found, lacks_memory, load_class
from holdfast.actors.specification import Failed
from holdfast.core.errors import InvalidConfig
from holdfast.core.requests import EngineRequest
from tests.unit.actors.test_replica_run import Told, in_virtual_time, specification, stdin

EXAMPLES = Path(__file__).parents[3] / "examples"

GOOD = """
from holdfast.core.requests import EngineInfo

class Good:
    info = EngineInfo("m", 8, 8, 8, True, "none")
    def __init__(self, path="w", size=1): ...
    async def admit(self, key, request): ...
    step = close = admit
    def drop(self, key): ...
    load = drop

class NoInfo(Good):
    info = "m"

class NoRoom(Good):
    info = EngineInfo("m", 8, 8, 0, True, "none")

class Raises(Good):
    def __init__(self):
        raise OSError("no weights")

class Exits(Good):
    def __init__(self):
        raise SystemExit(3)

class TooBig(Good):
    def __init__(self):
        raise MemoryError("no room for the weights")

class OutOfMemoryError(RuntimeError): ...

class TooBigForTheDevice(Good):
    def __init__(self):
        raise OutOfMemoryError("CUDA out of memory")

class Awaits(Good):
    async def load(self): ...
    def step(self): ...

class Bare: ...

function = len
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "user_engines.py").write_text(GOOD)
    (tmp_path / "user_broken.py").write_text("1 / 0\n")
    (tmp_path / "user_hungry.py").write_text("raise MemoryError\n")
    (tmp_path / "user_needs.py").write_text("import no_such_package_at_all\n")
    yield tmp_path
    for name in ("user_engines", "user_broken", "user_hungry", "user_needs"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("path", "arguments", "says"),
    [
        ("user_absent:Good", {}, "no module 'user_absent': it must be in the folder that the node was started in"),
        (
            "user_broken:Good",
            {},
            "importing user_broken raised ZeroDivisionError: division by zero (user_broken.py, line",
        ),
        ("user_needs:Good", {}, "importing user_needs raised ModuleNotFoundError: No module named 'no_such_package"),
        ("user_engines:Absent", {}, "the module user_engines has no class Absent"),
        ("user_engines:function", {}, "the module user_engines has no class function"),
        (
            "user_engines:Bare",
            {},
            "it has no info; it has no drop; it has no load; it has no admit; it has no step; it",
        ),
        ("user_engines:Awaits", {}, "step must be a coroutine function; load must be no coroutine function"),
        (
            "user_engines:Good",
            {"sise": 1},
            "can't be made with these arguments: got an unexpected keyword argument 'sise'",
        ),
        ("user_engines:Raises", {}, "making user_engines:Raises raised OSError: no weights (user_engines.py, line 20)"),
        ("user_engines:Exits", {}, "making user_engines:Exits raised RuntimeError: SystemExit: 3"),
        ("user_engines:NoInfo", {}, "info must be an EngineInfo (holdfast.core.requests), not str"),
        ("user_engines:NoRoom", {}, "info.streams_max must be an integer of at least 1, not 0"),
    ],
)
async def test_what_is_wrong_with_a_class_is_said(
    modules: Path, path: str, arguments: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidConfig) as refused:
        await load_class({"import_path": path, **arguments})
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


async def test_a_class_is_made_with_its_arguments(modules: Path) -> None:
    engine = await load_class({"import_path": "user_engines:Good", "path": "x"})
    assert engine.info.model == "m"


def test_a_replica_with_a_bad_class_ends_with_2_and_says_why(modules: Path) -> None:
    async def scenario() -> None:
        from holdfast.actors.replica_main import run

        told = Told()
        assert await run(told, stdin(specification("class", import_path="user_engines:Absent"))) == 2
        assert told.reports == [Failed("user_engines:Absent: the module user_engines has no class Absent")]

    in_virtual_time(scenario())


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (
            "user_engines:TooBig",
            "making user_engines:TooBig raised MemoryError: no room for the weights (user_engines.py",
        ),
        (
            "user_engines:TooBigForTheDevice",
            "making user_engines:TooBigForTheDevice raised OutOfMemoryError: CUDA out of memory (user_engines.py, line",
        ),
        ("user_hungry:Good", "importing user_hungry raised MemoryError:"),
    ],
)
def test_a_replica_whose_class_runs_out_of_memory_ends_with_1_and_says_why(modules: Path, path: str, says: str) -> None:
    async def scenario() -> None:
        from holdfast.actors.replica_main import run

        told = Told()
        assert await run(told, stdin(specification("class", import_path=path))) == 1
        (report,) = told.reports
        assert isinstance(report, Failed)
        assert report.message.startswith(f"OutOfMemory: {says}")

    in_virtual_time(scenario())


def test_torch_says_so_by_the_name_that_is_looked_for() -> None:
    torch = pytest.importorskip("torch")
    assert lacks_memory(torch.OutOfMemoryError("no room"))
    assert lacks_memory(torch.cuda.OutOfMemoryError("no room"))
    assert not lacks_memory(RuntimeError("no room"))


def test_whether_a_module_is_there_shows_without_importing_it(modules: Path) -> None:
    check_found({"import_path": "user_broken:Good"}, modules)
    assert "user_broken" not in sys.modules
    with pytest.raises(InvalidConfig, match="no module 'user_absent'"):
        check_found({"import_path": "user_absent.part:Good"}, modules)


async def test_the_example_says_the_prompt_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    engine: Engine = await load_class({"import_path": "engine_class:Echo", "greeting": "You said:", "pace_s": 0})
    await engine.admit(1, EngineRequest(prompt="one two"))
    texts: list[str] = []
    while engine.load().running:
        texts += (await engine.step()).texts
    assert "".join(texts) == " You said: one two"
    sys.modules.pop("engine_class", None)
