"""Production actors in a simulated world: virtual time, drawn faults, checked invariants.

Begin with `simulation`, which makes one run: `plan` says what it will be (settings, `faults`, `work`), `cluster` is
what lives in a `world` over the servers of `nats` and `etcd`, `history` is what happened, and `checkers` judge it.
`cli` and `running` make many runs and tell of them, `report` draws one. `mutants` are what must be caught, `bugs` what
was. `scale` is apart: larger clusters, without faults. `docs/simulation.md` tells how it all works.
"""
