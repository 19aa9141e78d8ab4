"""How a start of Ray that fails is told: as what a new session may heal, or as what it may not."""

from __future__ import annotations

import pytest
import ray

from ray_l4.cluster import connection
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError, SessionLostError


class NoWatchdog:
    """Nothing is started that would have to be watched."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Exception("The current node timed out during startup."), SessionLostError),
        (ConnectionError("no GCS"), SessionLostError),
        (RuntimeError("the raylet has ended"), SessionLostError),
        (ValueError("object_store_memory is too small"), ClusterError),
    ],
)
def test_a_local_ray_that_does_not_start(
    error: Exception, kind: type[ClusterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: object) -> None:
        raise error

    monkeypatch.setattr(connection, "Watchdog", NoWatchdog)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ClusterError, match="cannot use a Ray cluster at this machine") as caught:
        connection.connect(1, ClusterConfig())
    assert type(caught.value) is kind and str(error).rstrip(".") in str(caught.value)
