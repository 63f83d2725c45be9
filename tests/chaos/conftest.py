"""A pool of nodes for each test of its own, as the tests of the cluster have it."""

from tests.cluster.conftest import pool

__all__ = ["pool"]
