"""Finds the cluster that a command is about, by its data directory or by its servers' URLs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.core.errors import Misuse
from holdfast.gateway.cli.options import overrides
from holdfast.gateway.data_dir import ClusterFile, DataDirectory
from holdfast.gateway.settings import Settings, load_settings

ANSWER_TIMEOUT_S = 3.0
"""How long a command waits for a server that does not answer, in seconds."""


class Found(NamedTuple):
    """A cluster: the settings that reach it, and what `up` noted about it where the data directory told."""

    settings: Settings
    cluster: ClusterFile | None
    directory: DataDirectory | None


def find_cluster(data_dir: Path, nats: Sequence[str] | None, etcd: Sequence[str] | None) -> Found:
    """The cluster at these URLs (options, then HOLDFAST_...), else in this directory. Raises `Misuse`."""
    given = overrides(nats, etcd)
    settings = load_settings(**given)
    log_given = "urls" in settings.nats.model_fields_set
    leases_given = "endpoints" in settings.etcd.model_fields_set
    if log_given and leases_given:
        return Found(_impatient(settings), None, None)
    directory = DataDirectory(data_dir)
    cluster = directory.read_cluster()
    if cluster is None:
        if log_given or leases_given:
            return Found(_impatient(settings), None, None)
        raise Misuse(
            f"no cluster in {data_dir}: start one with `holdfast up`, "
            f"or say where it is with --data-dir, or with --nats and --etcd"
        )
    _check_running(directory, cluster)
    more: dict[str, Any] = dict(given)
    if not log_given:
        more["nats"] = {"urls": tuple(cluster.nats.urls)}
        if cluster.nats.embedded and "replicas" not in settings.nats.model_fields_set:
            more["nats"]["replicas"] = max(1, len(cluster.nats.servers))
    if not leases_given:
        more["etcd"] = {"endpoints": tuple(cluster.etcd.urls)}
    if "cluster" not in settings.model_fields_set:
        more["cluster"] = cluster.cluster
    return Found(_impatient(load_settings(**more)), cluster, directory)


def _check_running(directory: DataDirectory, cluster: ClusterFile) -> None:
    """Raises `Misuse` when all that the directory knows of has ended."""
    if directory.in_use() or not (cluster.nats.embedded or cluster.etcd.embedded):
        return
    how = "was killed" if cluster.running else "is stopped"
    raise Misuse(f"the cluster in {directory.path} {how}: run `holdfast up` to continue it")


def _impatient(settings: Settings) -> Settings:
    """The settings with waits that suit a person at a terminal."""
    log, leases = settings.nats, settings.etcd
    log_waits = {
        "open_timeout_s": ANSWER_TIMEOUT_S,
        "read_timeout_s": ANSWER_TIMEOUT_S,
        # One server that hangs must leave time to ask the others.
        "connect_timeout_s": min(log.connect_timeout_s, ANSWER_TIMEOUT_S / len(log.urls)),
    }
    lease_waits = {
        "request_timeout_s": ANSWER_TIMEOUT_S,
        "try_timeout_s": min(leases.try_timeout_s, ANSWER_TIMEOUT_S / len(leases.endpoints)),
    }
    return settings.model_copy(
        update={"nats": log.model_copy(update=log_waits), "etcd": leases.model_copy(update=lease_waits)}
    )
