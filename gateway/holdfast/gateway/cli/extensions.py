"""Commands from above the gateway: `holdfast sim` is not the gateway's, and is found by its entry point.

Entry points are looked up, and the commands behind them imported, only for `--help` and for names that are no command
of the gateway's.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import typer
from typer.core import TyperGroup

GROUP = "holdfast.commands"
"""Entry points of this group name a `typer.Typer` each."""


class ExtensibleGroup(TyperGroup):
    """The gateway's commands, and those of entry points."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names: the gateway's first."""
        return [*super().list_commands(ctx), *sorted(_entry_points())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, None if there is none. Fails where an entry point names code that is not there."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        found = _entry_points()
        if cmd_name not in found:
            return None if found else ctx.fail(f"No such command '{cmd_name}'. {_OLD}")
        try:
            command = typer.main.get_command(found[cmd_name].load())
        except (ImportError, AttributeError) as error:
            return ctx.fail(f"{cmd_name}: {error}. {_OLD}")
        command.name = cmd_name
        return command


_OLD = "This installation is older than its code: install it again, as with `pip install -e .` in the repository."


def _entry_points() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=GROUP)}
