"""A real Slurm, and this process set to it."""

from collections.abc import Iterator

import pytest

from tests.support.paths import ROOT
from tests.support.slurm_cluster import Cluster, slurm_cluster


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    with slurm_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """This process, and the tasks that it submits, know the cluster, and run this checkout."""
    monkeypatch.setenv("SLURM_CONF", shared_cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return shared_cluster
