"""The fault tests run the clusters of the acceptance tests."""

from tests.acceptance.conftest import mock_cluster, start_cluster

__all__ = ["mock_cluster", "start_cluster"]
