"""`python -m examples.bench`: what one machine can do. `make bench` and the like run it."""

import typer

from examples.bench.canaries import canaries
from examples.bench.chaos.command import chaos
from examples.bench.faults import faults
from examples.bench.fold import fold
from examples.bench.overload import overload
from examples.bench.recovery import recovery
from examples.bench.resilience import resilience
from examples.bench.slow_readers import slow_readers
from examples.bench.throughput import throughput
from examples.bench.vanish import vanish

app = typer.Typer(help="Measure a cluster on this machine.", add_completion=False)
app.command()(throughput)
app.command()(recovery)
app.command()(fold)
app.command()(faults)
app.command()(canaries)
app.command()(resilience)
app.command()(chaos)
app.command()(vanish)
app.command()(overload)
app.command("slow-readers")(slow_readers)

if __name__ == "__main__":
    app()
