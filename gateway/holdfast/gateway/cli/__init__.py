"""The command line `holdfast`. Each command is in its own module and imports what it runs only when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.gateway.cli import doctor, drain, leases, log, members, requests, status, up
from holdfast.gateway.cli.extensions import ExtensibleGroup
from holdfast.gateway.cli.logs import quiet_libraries

app = typer.Typer(
    name="holdfast",
    cls=ExtensibleGroup,
    help="Serve models as token streams that no single failure can break.",
    epilog="Start with: holdfast up. Then: holdfast status, holdfast log tail -f, holdfast leases ls, holdfast doctor.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=up.EPILOG)(up.up)
app.command(epilog=status.EPILOG)(status.status)
app.add_typer(log.app, name="log")
app.add_typer(leases.app, name="leases")
app.add_typer(requests.app, name="requests")
app.command(epilog=drain.DRAIN_EPILOG)(drain.drain)
app.command(epilog=drain.UNDRAIN_EPILOG)(drain.undrain)
app.command(epilog=doctor.EPILOG)(doctor.doctor)
app.command()(members.node)
app.command()(members.gateway)


@app.command()
def version() -> None:
    """Print the version of Holdfast."""
    from holdfast.gateway.version import VERSION

    print(f"holdfast {VERSION}")


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def _main(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    quiet_libraries()


def main() -> None:
    """The console script."""
    app()
