"""`holdfast doctor`: whether this machine and the cluster's servers are as Holdfast needs them."""

from __future__ import annotations

from pathlib import Path

from holdfast.gateway.cli.options import DataDirOption, EtcdOption, JsonOption, NatsOption
from holdfast.gateway.cli.running import EXIT_FAILED, execute

EPILOG = """
Examples

`holdfast doctor` examines this machine, and the cluster that `holdfast up` runs in this directory.

`holdfast doctor --nats nats://a:4222 --etcd http://a:2379` examines servers anywhere.

Exit code 0 when nothing failed (warnings are fine), 1 otherwise.
"""


def doctor(
    as_json: JsonOption = False,
    data_dir: DataDirOption = Path(".holdfast"),
    nats: NatsOption = None,
    etcd: EtcdOption = None,
) -> None:
    """Examine machine, installation and servers, and say what to do about what is wrong."""
    if execute(_examine(data_dir, nats, etcd, as_json)):
        raise SystemExit(EXIT_FAILED)


async def _examine(data_dir: Path, nats: list[str] | None, etcd: list[str] | None, as_json: bool) -> bool:
    """Print the findings; whether one of them failed."""
    from holdfast.gateway.cli.checks import FAIL, examine
    from holdfast.gateway.cli.tables import console, print_json, table

    findings = await examine(data_dir, nats, etcd)
    if as_json:
        print_json(findings)
    else:
        columns = ("CHECK", "RESULT", "FOUND", "WHAT TO DO")
        console().print(table("", columns, [(row.check, row.result, row.found, row.advice) for row in findings]))
    return any(row.result == FAIL for row in findings)
