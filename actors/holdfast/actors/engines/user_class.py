"""An engine of the user's own: a class that is found by its import path, made in the replica's process, and checked.

Whatever is wrong with it is the user's to mend, so it is said in one sentence that names the place, and the replica
ends as it does for any wrong configuration. A lack of memory is not wrong with it: that is the machine's, and passes.
"""

from __future__ import annotations

import importlib
import inspect
import traceback
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

from holdfast.actors.engines.base import Engine
from holdfast.actors.threads import in_thread
from holdfast.core.config import check_import_path
from holdfast.core.errors import HoldfastError, InvalidConfig, OutOfMemory, in_words
from holdfast.core.requests import EngineInfo

IMPORT_PATH: Final = "import_path"

COROUTINES: Final = ("admit", "step", "close")
PLAIN: Final = ("drop", "load")
"""An engine's methods, as in `engines/base.py`; besides them it has `info`, and perhaps `check_health`."""

OUT_OF_MEMORY: Final = "OutOfMemoryError"
"""What torch calls a lack of memory (`torch.OutOfMemoryError`, once `torch.cuda.OutOfMemoryError`), and CuPy too."""


async def load_class(arguments: dict[str, Any]) -> Engine:
    """An engine of the class that `arguments` name, made with the other arguments.

    Raises `InvalidConfig`, and `OutOfMemory` where the class, or its module, does not find enough of it.

    It is made in a thread, since that may take long; its methods are called in the event loop.
    """
    path = check_import_path(arguments)
    module_name, _, class_name = path.partition(":")
    made = getattr(_import(module_name), class_name, None)
    if not isinstance(made, type):
        raise InvalidConfig(f"{path}: the module {module_name} has no class {class_name}")
    check_methods(path, made)
    keywords = {name: value for name, value in arguments.items() if name != IMPORT_PATH}
    try:
        inspect.signature(made).bind(**keywords)
    except TypeError as error:
        raise InvalidConfig(f"{path} can't be made with these arguments: {error}") from error
    try:
        engine = await in_thread(lambda: made(**keywords))
        info = engine.info
    except Exception as error:
        raise _broken(f"making {path}", error) from error
    if not isinstance(info, EngineInfo):
        raise InvalidConfig(f"{path}: info must be an EngineInfo (holdfast.core.requests), not {type(info).__name__}")
    check_info(path, info)
    return cast(Engine, engine)


def check_info(path: str, info: EngineInfo) -> None:
    """Raises `InvalidConfig` where the engine could never be given a stream: it would wait for one for ever."""
    for name in ("context_tokens_max", "kv_blocks", "streams_max"):
        value = getattr(info, name)
        if not isinstance(value, int) or value < 1:
            raise InvalidConfig(f"{path}: info.{name} must be an integer of at least 1, not {value!r}")


def check_methods(path: str, made: type) -> None:
    """Raises `InvalidConfig` naming every method that the class lacks, or that is a coroutine function or is none."""
    wrong = [f"it has no {name}" for name in ("info", *PLAIN, *COROUTINES) if not hasattr(made, name)]
    wrong += [f"{name} must be a coroutine function" for name in COROUTINES if _is_coroutine(made, name) is False]
    wrong += [f"{name} must be no coroutine function" for name in PLAIN if _is_coroutine(made, name) is True]
    if wrong:
        raise InvalidConfig(f"{path} is no engine (holdfast.actors.engines.base.Engine): {'; '.join(wrong)}")


def _is_coroutine(made: type, name: str) -> bool | None:
    """Whether that method is a coroutine function; None if it is not there."""
    return inspect.iscoroutinefunction(getattr(made, name)) if hasattr(made, name) else None


def check_found(arguments: dict[str, Any], folder: Path) -> None:
    """Whether the module seems to be there for processes that run in `folder`. Raises `InvalidConfig`."""
    module = check_import_path(arguments).partition(":")[0].partition(".")[0]
    if PathFinder.find_spec(module) is None and PathFinder.find_spec(module, [str(folder)]) is None:
        raise InvalidConfig(_not_found(module))


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise InvalidConfig(_not_found(missing)) from error
        raise _broken(f"importing {name}", error) from error
    except Exception as error:
        raise _broken(f"importing {name}", error) from error


def _not_found(module: str) -> str:
    return f"no module {module!r}: it must be in the folder that the node was started in, or on its PYTHONPATH"


def _broken(what: str, error: Exception) -> HoldfastError:
    """The error for what the user's code raised."""
    kind = OutOfMemory if lacks_memory(error) else InvalidConfig
    return kind(f"{what} raised {_told(error)}")


def lacks_memory(error: BaseException) -> bool:
    """Whether it says that memory is short: the host's, or a device's as torch tells it, which may not be there."""
    return isinstance(error, MemoryError) or any(one.__name__ == OUT_OF_MEMORY for one in type(error).__mro__)


def _told(error: Exception) -> str:
    """The exception in a line, with the last place of the user's in it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return in_words(error) + where
