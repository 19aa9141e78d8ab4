"""The codecs and transports as data: what their names imply, asked here instead of comparing names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class CodecTraits:
    """What the rest of the system must know of a codec."""

    reduces: bool = False
    """Payloads are summed over all peers together, instead of being handed from one to another."""
    forward_only: bool = False
    """Targets may give a token no probability, so only KL(teacher || student) can be taken."""
    narrowable: bool = False
    """May send log-probabilities over the whole vocabulary, to which ``exchange.precision`` applies."""
    sends_output_layer: bool = False
    """Always sends the whole output matrix, which a fully sharded student does not have."""


@dataclass(frozen=True)
class TransportTraits:
    """What the rest of the system must know of a transport."""

    in_one_process: bool = False
    """All workers are objects of one process, without Ray."""
    through_object_store: bool = False
    """Payloads lie in Ray's object store."""
    process_group: bool = False
    """Payloads travel through a process group of the peers, which has to be formed first."""
    device_memory: bool = False
    """Payloads lie in the sender's GPU memory, where peers on the same host read them."""

    @property
    def by_reference(self) -> bool:
        """Whether a published payload lies ready until it is read, so publishing does not wait for readers."""
        return self.in_one_process or self.through_object_store


CODECS: Mapping[str, CodecTraits] = MappingProxyType(
    {
        "auto": CodecTraits(narrowable=True),
        "dense": CodecTraits(narrowable=True),
        "factored": CodecTraits(sends_output_layer=True),
        "topk": CodecTraits(),
        "sampled": CodecTraits(forward_only=True),
        "mean": CodecTraits(reduces=True, forward_only=True),
    }
)
"""Every value of ``exchange.codec``."""

TRANSPORTS: Mapping[str, TransportTraits] = MappingProxyType(
    {
        "in_process": TransportTraits(in_one_process=True),
        "object_store": TransportTraits(through_object_store=True),
        "collective": TransportTraits(process_group=True),
        "cuda_ipc": TransportTraits(device_memory=True),
    }
)
"""Every value of ``exchange.transport``."""
