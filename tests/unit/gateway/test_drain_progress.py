"""Whom an operator means by a name, and how far a drain is said to be."""

from __future__ import annotations

import pytest

from holdfast.core import events as ev
from holdfast.core.errors import Misuse
from holdfast.gateway.drain_progress import Target, drain_progress, find_target, only_gateway, undrain_progress
from tests.unit.core.test_drains import Drained, drained


def cluster_with_gateways(*names: str) -> Drained:
    cluster = drained(a=4, b=4)
    for name in names:
        cluster.fact(ev.GatewayJoined(name, "host", 1, "http://g", "0"), by=f"gateway.{name}")
    return cluster


def test_a_name_means_whoever_has_it() -> None:
    state = cluster_with_gateways("g").state
    assert find_target(state, "a") == Target("node", "a")
    assert find_target(state, "g") == Target("gateway", "g")
    assert find_target(state, "app.tiny.2") == Target("replica", "app.tiny.2")
    assert find_target(state, "gateway/g") == Target("gateway", "g")


def test_a_name_of_several_or_of_nobody_is_refused_with_what_there_is() -> None:
    state = cluster_with_gateways("a").state
    with pytest.raises(Misuse, match="say node/a or gateway/a"):
        find_target(state, "a")
    assert find_target(state, "gateway/a") == Target("gateway", "a")
    with pytest.raises(Misuse, match=r"nodes: a, b; replicas: app.tiny.1, app.tiny.2; gateways: a"):
        find_target(state, "nobody")
    with pytest.raises(Misuse, match="there is no"):
        find_target(state, "replica/a")


def test_a_nodes_drain_is_done_when_nothing_runs_on_it() -> None:
    cluster, target = drained(a=1, b=1), Target("node", "a")
    cluster.drain("node", "a")
    assert drain_progress(cluster.state, target).message == "waits for a leader to decide"
    cluster.settle()
    waits = drain_progress(cluster.state, target)
    assert not waits.done
    assert "app.tiny.1 to go" in waits.message
    assert "no node has room" in waits.message
    cluster.fact(ev.NodeJoined("c", "host", 1, "0", 4), by="node.c")
    cluster.settle()
    assert drain_progress(cluster.state, target).done
    cluster.undrain("node", "a")
    assert not undrain_progress(cluster.state, target).done
    cluster.settle()
    assert undrain_progress(cluster.state, target).done
    assert "meanwhile" in drain_progress(cluster.state, target).message


def test_a_replicas_drain_is_done_when_it_is_gone() -> None:
    cluster, target = drained(a=4, b=4), Target("replica", "app.tiny.1")
    cluster.drain("replica", "app.tiny.1")
    cluster.step()
    assert not drain_progress(cluster.state, target).done
    cluster.settle()
    assert drain_progress(cluster.state, target).done


@pytest.mark.parametrize("how", ["it drains", "its process ended"])
def test_a_gateways_drain_is_done_when_it_says_so_or_has_ended(how: str) -> None:
    cluster, target = cluster_with_gateways("g", "h"), Target("gateway", "g")
    assert not only_gateway(cluster.state, target)
    cluster.drain("gateway", "g")
    cluster.settle()
    assert not drain_progress(cluster.state, target).done
    assert only_gateway(cluster.state, Target("gateway", "h"))
    drain = cluster.state.gateways["g"].drain
    assert drain is not None
    if how == "it drains":
        cluster.fact(ev.GatewayDrained("g", 0), by="gateway.g", cause=drain.event)
    else:
        cluster.fact(ev.GatewayLeft("g"), by="gateway.g")
    assert drain_progress(cluster.state, target).done
