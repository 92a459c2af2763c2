"""`holdfast sim`: simulated clusters, by the thousand or one to look at. Imports what it runs only when it runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from holdfast.gateway.cli.options import JsonOption
from holdfast.gateway.cli.running import guarded

STANDARD = "standard"
SEED_MAX = 2**63 - 1
SEEDS_MAX = 100_000_000
JOBS_MAX = 256

RUN_EPILOG = """
Examples

`holdfast sim run --seeds 1000` runs 1,000 clusters of the standard scenario, as many at a time as there are processors.

`holdfast sim run --seeds 500 --first-seed 5000 --scenario core` looks for clusters that never recover.

`holdfast sim run --scenario busy` overloads small clusters, and breaks them for longer than all bounds.

`holdfast sim run --scenario uneven` has replicas that serve far worse than others, and gateways that pass them over.

Exit code 0 when no seed failed, 1 when one did, or when 1,000 seeds or more never had one of the kinds of faults, or
nothing for one of the checkers to judge, 2 for a mistake in the call, 130 after Ctrl-C without a failure so far.
"""
REPLAY_EPILOG = """
Examples

`holdfast sim replay 17` tells what happens in seed 17, and what it breaks.

`holdfast sim replay 17 --report 17.html` draws it as well: processes, leases, faults and streams over time.

`holdfast sim replay 17 --timeline` draws it in the terminal.

`holdfast sim replay 17 --only-faults 3,9 --lasts-s 20` runs it with two of its faults, for 20 s of virtual time.

Exit code 0 when it breaks nothing, 1 when it does.
"""
SHRINK_EPILOG = """
Examples

`holdfast sim shrink 17` leaves out what seed 17 does not need to fail.

`holdfast sim shrink 17 --save lost-token.json` keeps the small run, for `holdfast sim replay lost-token.json`.
"""

SCALE_EPILOG = """
Examples

`holdfast sim scale --nodes 200` measures 200 nodes with 2,000 replicas and 10 gateways.
"""
MUTANTS_EPILOG = """
Examples

`holdfast sim mutants` takes out each guard, one after the other, and then makes sure that the code as it is
passes those seeds.

`holdfast sim mutants --only epoch-check --only token-once` takes out these two, one after the other.

Exit code 0 when each was noticed, 1 when one was not, or when a seed fails with all guards in place.
"""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Simulate clusters in virtual time, break them in every way, and check what must hold.",
)

ScenarioOption = Annotated[str, typer.Option(metavar="NAME", help="What kind of cluster, work and faults.")]
JobsOption = Annotated[
    int | None,
    typer.Option(min=1, max=JOBS_MAX, help="Runs at a time, each in a process.", show_default="one for each processor"),
]
OnlyFaultsOption = Annotated[
    str | None,
    typer.Option(metavar="NUMBERS", help="Inject only these of its faults, as 3,9; or none.", show_default="all"),
]
OnlyWorkOption = Annotated[
    str | None,
    typer.Option(metavar="NUMBERS", help="Do only these pieces of its work, as 1,4; or none.", show_default="all"),
]
LastsOption = Annotated[
    float | None,
    typer.Option(min=0.001, metavar="S", help="End after so many virtual seconds.", show_default="as drawn"),
]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="SEED|BUG|FILE", help="A seed, a bug that has a name, or a plan in a file.", show_default=False
    ),
]
SeedScenarioOption = Annotated[
    str | None, typer.Option("--scenario", metavar="NAME", help="What the seed is of.", show_default=STANDARD)
]


@app.command(epilog=RUN_EPILOG)
def run(
    seeds: Annotated[int, typer.Option(min=1, max=SEEDS_MAX, metavar="N", help="How many seeds.")] = 100,
    first_seed: Annotated[int, typer.Option(min=0, max=SEED_MAX, metavar="N", help="The first of them.")] = 1,
    scenario: ScenarioOption = STANDARD,
    jobs: JobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run many seeds, and tell which fail, which faults were injected, and how much each checker judged.

    A seed is a whole cluster's life: all that is drawn in it follows from the seed and the scenario. With --json one
    object is printed at the end; progress goes to standard error.
    """
    from holdfast.simulations.running import commands

    _end(lambda: commands.run(scenario, first_seed, seeds, jobs or _processors(), as_json=as_json))


@app.command(epilog=REPLAY_EPILOG)
def replay(
    what: RunArgument,
    scenario: SeedScenarioOption = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Draw the run into this file.", show_default=False)
    ] = None,
    timeline: Annotated[bool, typer.Option("--timeline", help="Draw the run here instead of telling it.")] = False,
    only_faults: OnlyFaultsOption = None,
    only_work: OnlyWorkOption = None,
    lasts_s: LastsOption = None,
    mutant: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="As this mutant's seed, without its guard.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run one seed again, and tell what happens: virtual time in seconds, who, what; then what it broke.

    With --json every line is an object; the last one is the result.
    """
    from holdfast.simulations.running import commands

    chosen = commands.Chosen(what, scenario, only_faults, only_work, lasts_s, mutant)
    _end(lambda: commands.replay(chosen, report, draws=timeline, as_json=as_json))


@app.command(epilog=SHRINK_EPILOG)
def shrink(
    what: RunArgument,
    scenario: SeedScenarioOption = None,
    only_faults: OnlyFaultsOption = None,
    only_work: OnlyWorkOption = None,
    lasts_s: LastsOption = None,
    jobs: JobsOption = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Keep the small run in this file.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the fewest faults, the least work and the shortest time that still break the same invariant.

    Exit code 1 when a run is shrunk, since it fails, and 2 when there is nothing to shrink.
    """
    from holdfast.simulations.running import commands

    chosen = commands.Chosen(what, scenario, only_faults, only_work, lasts_s)
    _end(lambda: commands.shrink(chosen, jobs or _processors(), save, as_json=as_json))


@app.command(epilog=SCALE_EPILOG)
def scale(
    nodes: Annotated[int | None, typer.Option(min=6, max=10_000, metavar="N", show_default="10, 100 and 1,000")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, max=10_000, metavar="N", show_default="10 a node")] = None,
    gateways: Annotated[int | None, typer.Option(min=1, max=1_000, metavar="N", show_default="1 for 20 nodes")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what large clusters cost: log, leases, decisions, memory, and the time to recover from a loss.

    A tenth of the nodes loses power at once. Without options three sizes are measured, of which the largest takes
    about ten minutes and 10 GB.
    """
    from holdfast.simulations.scale.command import scale, sizes_for

    _end(lambda: scale(sizes_for(nodes, replicas, gateways), as_json=as_json))


@app.command(epilog=MUTANTS_EPILOG)
def mutants(
    seeds: Annotated[
        int, typer.Option(min=1, max=SEEDS_MAX, metavar="N", help="At most so many seeds for each.")
    ] = 100,
    jobs: JobsOption = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this one; may be repeated.", show_default="all")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take guards out of the code, one at a time, and run seeds until a checker notices that it is gone."""
    from holdfast.simulations.mutants import command

    _end(lambda: command.check(only or [], seeds, jobs or _processors(), as_json=as_json))


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List scenarios, kinds of faults, mutants, and the bugs that have a name."""
    from holdfast.simulations.running import commands

    _end(lambda: commands.list_all(as_json=as_json))


def _end(command: Callable[[], int]) -> None:
    """Run a command to its end and exit with the code that it returns."""
    if code := guarded(command):
        raise SystemExit(code)


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))
