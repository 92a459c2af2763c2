"""Edits of production code take effect everywhere, and are undone."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.simulations.mutants import NoSuchMutant, removed
from holdfast.simulations.mutants.edits import Constant, StaleEdit, edit


def greeting(name: str, times: int = 1) -> str:
    """What is said."""
    return f"hello {name} " * times


class Shown:
    @property
    def what(self) -> str:
        return "all"

    async def later(self) -> list[str]:
        return [self.what for _ in range(2)]


def test_an_edit_takes_effect_under_every_name_and_is_undone() -> None:
    alias, shown = greeting, Shown()
    with edit(greeting, ("hello", "good bye"), ("* times", "")).applied():
        assert alias("you", 3) == "good bye you "
    assert alias("you", 2) == "hello you hello you "
    with edit(Shown.what, ('"all"', '"nothing"')).applied(), edit(Shown.later, ("range(2)", "range(1)")).applied():
        assert asyncio.run(shown.later()) == ["nothing"]
    assert asyncio.run(shown.later()) == ["all", "all"]


def test_an_edit_is_undone_after_a_failure() -> None:
    with pytest.raises(KeyError), edit(greeting, ("hello", "good bye")).applied():
        raise KeyError
    assert greeting("you") == "hello you "


@pytest.mark.parametrize("old", ["no such text", "e"])
def test_an_edit_of_text_that_is_not_there_exactly_once_is_an_error(old: str) -> None:
    with pytest.raises(StaleEdit, match="times what is to be replaced"), edit(greeting, (old, "")).applied():
        pass


def test_a_constant_is_exchanged_and_must_be_there() -> None:
    import holdfast.core.stream as module

    with Constant(module, "FINISH_STOP", "halt").applied():
        assert module.FINISH_STOP == "halt"
    assert module.FINISH_STOP == "stop"
    with pytest.raises(AttributeError), Constant(module, "NO_SUCH", 1).applied():
        pass


def test_an_unknown_mutant_is_named() -> None:
    with pytest.raises(NoSuchMutant, match="there is no mutant nonsense; there are expected-sequence, "):
        removed("nonsense")
