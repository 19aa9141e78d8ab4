"""Builds the link that the profile selects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ray_l4.config.cluster import ExchangeConfig
from ray_l4.exchange.links import ByReference, Link
from ray_l4.workers.process import address
from ray_l4.workers.rendezvous import Rendezvous, join

if TYPE_CHECKING:
    from ray_l4.exchange.collective import Collective


def first_link(peer: int, device: torch.device, exchange: ExchangeConfig, payloads: int = 1) -> Link:
    """Build the link that a student starts with; ``collective_link`` replaces it if predictions go through a group.

    ``payloads``: how many the student publishes in a step, at most.
    """
    if exchange.transport_traits.device_memory:
        from ray_l4.exchange.device_buffers import cuda_link  # only where there is a GPU

        return cuda_link(peer, device, exchange.steps_ahead, payloads)
    return ByReference(peer, device)


def collective_link(peer: int, device: torch.device, rendezvous: Rendezvous, ranks: Mapping[int, int]) -> Collective:
    """Join the peers' process group and build the link through it. ``ranks``: peer -> its rank in the group.

    Raises PeerLostError if the other peers do not join in time.
    """
    from ray_l4.exchange.collective import Collective

    return Collective(peer, device, join(rendezvous, device, address()), ranks)
