"""Takes a guard out of production code for the time of a run, and puts it back.

An edit replaces text within one function, and exchanges the code of that very function object: so it takes effect
under whatever names the function was imported, and in no copy of it that could grow old. Text that is not there
exactly once is an error, so that no edit becomes void unnoticed when production code changes.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType, FunctionType
from typing import Any, NamedTuple
from unittest.mock import patch

from holdfast.core.errors import HoldfastError


class StaleEdit(HoldfastError):
    """The code that an edit was made for reads differently now: the edit must be made anew."""


class Edit(NamedTuple):
    """Changes to one function's text: (old, new), each old text standing there once. A property means its getter."""

    target: Any
    changes: tuple[tuple[str, str], ...]

    @property
    def function(self) -> Any:
        """The function that is changed."""
        return inspect.unwrap(getattr(self.target, "fget", self.target))

    @property
    def place(self) -> str:
        """Which function that is, for people."""
        return f"{self.function.__module__.removeprefix('holdfast.')}.{self.function.__qualname__}"

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While entered, the function does what the changed text says. Raises `StaleEdit`."""
        function = self.function
        before, function.__code__ = function.__code__, mutated(function, self.changes)
        try:
            yield
        finally:
            function.__code__ = before


class Constant(NamedTuple):
    """Another value for a constant of a module, for those who look it up there."""

    module: Any
    name: str
    value: Any

    @property
    def place(self) -> str:
        """Which constant that is, for people."""
        return f"{self.module.__name__.removeprefix('holdfast.')}.{self.name}"

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While entered, the constant has the other value. Raises `AttributeError` where there is no such constant."""
        with patch.object(self.module, self.name, self.value):
            yield


def edit(target: Any, *changes: tuple[str, str]) -> Edit:
    """Changes to one function."""
    return Edit(target, changes)


@contextmanager
def applied(edits: tuple[Edit | Constant, ...]) -> Iterator[None]:
    """All of them at once."""
    with ExitStack() as stack:
        for one in edits:
            stack.enter_context(one.applied())
        yield


def mutated(function: FunctionType, changes: tuple[tuple[str, str], ...]) -> CodeType:
    """The code of the function with its text changed. Raises `StaleEdit`."""
    lines, first = inspect.getsourcelines(function)
    source = textwrap.dedent("".join(lines))
    for old, new in changes:
        if source.count(old) != 1:
            raise StaleEdit(f"{function.__qualname__} has {source.count(old)} times what is to be replaced: {old!r}")
        source = source.replace(old, new)
    tree = ast.parse(source)
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef)
    definition.decorator_list = []
    ast.increment_lineno(tree, first - 1)
    flags = annotations.compiler_flag
    module = compile(tree, function.__code__.co_filename, "exec", flags=flags, dont_inherit=True)
    code = next(
        const for const in module.co_consts if isinstance(const, CodeType) and const.co_name == function.__name__
    )
    if code.co_freevars != function.__code__.co_freevars:
        raise StaleEdit(f"{function.__qualname__} uses names of a function around it, and can't be compiled alone")
    return code.replace(co_qualname=function.__code__.co_qualname)
