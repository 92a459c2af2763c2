"""The fault tests run the clusters of the acceptance tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.conftest import NO_CANARY, Cluster, clusters, mock_cluster, start_cluster

__all__ = ["mock_cluster", "paced_cluster", "start_cluster"]


@pytest.fixture(scope="module")
def paced_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two replicas of the mock engine, at a pace that leaves time to do something to streams, with faults by prompt and
    signal. For all tests of a module: each leaves it whole, and no replica is passed over for what one did to it.
    """
    environment = {"HOLDFAST_ADMISSION__OUTLIER_EJECTION": "false"}
    with clusters(tmp_path_factory) as start:
        yield start(*NO_CANARY, engine_args={"itl_ms": 6, "faults": True}, environment=environment)
