"""What simulated NATS servers carry to each other: in order, after some time, and not where nothing passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from holdfast.simulations.nats.consumer import Sink

if TYPE_CHECKING:
    from holdfast.simulations.nats.server import Server
    from holdfast.simulations.world.world import World

WAY_S = (0.0001, 0.001)
"""One way between two servers takes so long (seconds, drawn)."""

APART_S = 1e-7


class RemoteSink:
    """A client's connection at another server."""

    def __init__(self, routes: Routes, home: Server, here: Server, client: Sink) -> None:
        self._routes = routes
        self._home = home
        self._here = here
        self._client = client

    @property
    def open(self) -> bool:
        """Whether the client is there, as far as is known here."""
        return self._client.open and self._home.process.alive and self._routes.pass_both_ways(self._here, self._home)

    def send(self, *message: Any) -> None:
        self._routes.carry(self._here, self._home, self._client.send, *message)


class Routes:
    """All ways between the servers of a group."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng("jetstream routes")
        self._arrives_s: dict[tuple[str, str], float] = {}

    def pass_both_ways(self, one: Server, other: Server) -> bool:
        """Whether two servers are up and get through to each other."""
        a, b = one.process, other.process
        passes = self._world.network.passes
        return a.alive and b.alive and passes(a.host.name, b.host.name) and passes(b.host.name, a.host.name)

    def carry(self, source: Server, target: Server, take: Callable[..., object], *args: Any) -> None:
        """Let the other server take something in, in the order in which it was sent. Lost where nothing passes."""
        if not self.pass_both_ways(source, target):
            return
        key = (source.member.name, target.member.name)
        at_s = self._world.now_s + self._rng.uniform(*WAY_S)
        at_s = self._arrives_s[key] = max(at_s, self._arrives_s.get(key, 0.0) + APART_S)
        self._world.scheduler.call_at(at_s, target.process.call, take, *args)

    def sink(self, source: Server, target: Server, client: Sink) -> Sink:
        """A client's connection at one server as another one sees it."""
        return client if source is target else RemoteSink(self, source, target, client)
