"""How a gateway's deployments stand: for `/v1/models` and for `/health`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast.core.barren import NO_TOKEN
from holdfast.core.cluster import ApplicationState, ClusterState, ReplicaState, ReplicaStatus
from holdfast.core.config import DeploymentConfig
from holdfast.gateway.backend import ModelInfo
from holdfast.gateway.pool import Pool


def standing_of(pool: Pool) -> dict[str, Any]:
    """The deployment, for `/health`."""
    return {
        "replicas_ready": sum(link.ready for link in pool.links),
        "replicas_wanted": pool.config.num_replicas,
        "queued": len(pool.queue),
        "in_flight": sum(link.in_flight for link in pool.links),
        "deterministic": pool.deterministic,
    }


def why_unserved(pool: Pool, replicas: Mapping[str, ReplicaState]) -> str:
    """Why the deployment can't be served here, empty if it can. A replica that answers and makes no token serves
    nobody; what an engine's own check has against it does not keep it from serving."""
    name, ready = pool.config.name, [link.replica for link in pool.links if link.ready]
    if not pool.config.num_replicas:
        return ""
    if not ready:
        return f"no replica of {name} is ready"
    known = [replicas[one] for one in ready if one in replicas]
    barren = [replica.message for replica in known if replica.unhealthy == NO_TOKEN]
    return f"no replica of {name} makes tokens: {barren[0]}" if len(barren) == len(ready) else ""


def info_of(state: ClusterState, application: ApplicationState, config: DeploymentConfig) -> ModelInfo:
    """The deployment as a model."""
    replicas = list(state.replicas_of(application.name, config.name))
    contexts = [replica.info.context_tokens_max for replica in replicas if replica.info is not None]
    return ModelInfo(
        config.name,
        application.name,
        application.deployed_at,
        min(contexts, default=0),
        sum(replica.status is ReplicaStatus.RUNNING for replica in replicas),
        config.num_replicas,
    )
