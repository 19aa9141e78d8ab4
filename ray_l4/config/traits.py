"""Properties of codecs and transports, looked up by name so that no code compares names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class CodecTraits:
    """Properties of a codec that matter outside of it."""

    reduces: bool = False
    """Payloads are summed over all peers by a collective reduction, and not sent from peer to peer."""
    forward_only: bool = False
    """Targets can assign zero probability to a token, so only KL(teacher || student) is finite."""
    narrowable: bool = False
    """Can send log-probabilities over the whole vocabulary, to which ``exchange.precision`` applies."""
    sends_output_layer: bool = False
    """Always sends the whole output matrix, which no rank of a fully sharded student has."""
    random: bool = False
    """Payloads are drawn at random, from a seed."""


@dataclass(frozen=True)
class TransportTraits:
    """Properties of a transport that matter outside of its link."""

    in_one_process: bool = False
    """All workers are objects of one process, without Ray."""
    through_object_store: bool = False
    """Payloads are stored in Ray's object store."""
    process_group: bool = False
    """Payloads travel through a process group of the peers, which must be formed first."""
    device_memory: bool = False
    """Payloads stay in the sender's GPU memory, where peers on the same host read them."""

    @property
    def by_reference(self) -> bool:
        """Return whether a published payload is kept until it is read, so that publishing does not wait for readers."""
        return self.in_one_process or self.through_object_store


CODECS: Mapping[str, CodecTraits] = MappingProxyType(
    {
        "auto": CodecTraits(narrowable=True),
        "dense": CodecTraits(narrowable=True),
        "factored": CodecTraits(sends_output_layer=True),
        "topk": CodecTraits(),
        "sampled": CodecTraits(forward_only=True, random=True),
        "mean": CodecTraits(reduces=True, forward_only=True),
    }
)
"""Traits of every value of ``exchange.codec``."""

TRANSPORTS: Mapping[str, TransportTraits] = MappingProxyType(
    {
        "in_process": TransportTraits(in_one_process=True),
        "object_store": TransportTraits(through_object_store=True),
        "collective": TransportTraits(process_group=True),
        "cuda_ipc": TransportTraits(device_memory=True),
    }
)
"""Traits of every value of ``exchange.transport``."""
