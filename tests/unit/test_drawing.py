"""What tests of properties are tried with does not depend on what ran before them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

CONSTANTS = [424_242_424_242, "hold fast, and then some"]


def drawn() -> list[tuple[list[int], str]]:
    """What a property is tried with."""
    found: list[tuple[list[int], str]] = []

    @settings(max_examples=200, derandomize=True, database=None)
    @given(st.lists(st.integers()), st.text())
    def tried(numbers: list[int], text: str) -> None:
        found.append((numbers, text))

    tried()
    return found


def test_the_same_is_drawn_whatever_has_been_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = drawn()
    path = tmp_path / "constants.py"
    path.write_text(f"VALUES = {CONSTANTS!r}\n")
    specification = importlib.util.spec_from_file_location("constants_of_nobody", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "constants_of_nobody", module)
    specification.loader.exec_module(module)
    assert drawn() == before
