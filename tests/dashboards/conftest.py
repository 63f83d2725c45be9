"""The stand of these tests, one for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dashboards.stand import PROMETHEUS, Stand


@pytest.fixture(scope="package")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A healthy node, watched; every test leaves it healthy."""
    if PROMETHEUS is None:
        pytest.skip("needs prometheus (Debian package prometheus)")
    stand = Stand(tmp_path_factory.mktemp("stand"))
    try:
        stand.start_agent()
        stand.start_prometheus()
        yield stand
    finally:
        stand.stop()
