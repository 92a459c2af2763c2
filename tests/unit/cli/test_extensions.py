"""Commands that come from above the gateway."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from holdfast.gateway.cli import app, extensions
from holdfast.gateway.cli.extensions import GROUP

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, metadata.EntryPoint]:
    """The entry points that the project declares, as if it were newly installed."""
    named = tomllib.loads(PROJECT.read_text())["project"]["entry-points"][GROUP]
    points = {name: metadata.EntryPoint(name, value, GROUP) for name, value in named.items()}
    monkeypatch.setattr(extensions, "_entry_points", lambda: points)
    return points


@pytest.mark.parametrize("command", [["sim"], ["sim", "run"], ["sim", "replay"], ["sim", "shrink"], ["sim", "list"]])
def test_the_simulation_is_a_command(declared: dict[str, metadata.EntryPoint], command: list[str]) -> None:
    ended = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert ended.exit_code == 0
    assert f"holdfast {' '.join(command)} [OPTIONS]" in ended.stdout


def test_help_lists_commands_from_above(declared: dict[str, metadata.EntryPoint]) -> None:
    listed = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    assert "Simulate clusters in virtual time" in listed
    assert all(isinstance(point.load(), typer.Typer) for point in declared.values())


def test_the_gateways_own_commands_look_for_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "_entry_points", lambda: pytest.fail("looked for"))
    assert CliRunner().invoke(app, ["version"]).exit_code == 0


def test_groups_of_commands_have_none_from_above(declared: dict[str, metadata.EntryPoint]) -> None:
    groups = [group for group in app.registered_groups if group.typer_instance is not None]
    assert {group.name for group in groups} >= {"log", "leases", "requests"}
    for group in groups:
        assert group.name
        listed = CliRunner().invoke(app, [group.name, "--help"], env={"COLUMNS": "200"})
        assert listed.exit_code == 0
        assert not [name for name in declared if f" {name} " in listed.stdout], group.name
        assert CliRunner().invoke(app, [group.name, next(iter(declared))]).exit_code == 2


def test_a_name_that_is_no_command_is_refused(declared: dict[str, metadata.EntryPoint]) -> None:
    ended = CliRunner().invoke(app, ["simm"], env={"COLUMNS": "200"})
    assert ended.exit_code == 2
    assert "No such command 'simm'" in ended.stderr


@pytest.mark.parametrize(
    "points",
    [
        {},
        {"sim": metadata.EntryPoint("sim", "holdfast.no_such_module:app", GROUP)},
        {"sim": metadata.EntryPoint("sim", "holdfast.gateway.cli:no_such_name", GROUP)},
    ],
)
def test_an_installation_that_is_older_than_its_code_is_told_so(
    points: dict[str, metadata.EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extensions, "_entry_points", lambda: points)
    ended = CliRunner().invoke(app, ["sim", "run"], env={"COLUMNS": "200"})
    assert ended.exit_code == 2
    assert "install it again, as with `pip install -e .`" in ended.stderr
    assert CliRunner().invoke(app, ["version"]).exit_code == 0
