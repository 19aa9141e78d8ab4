"""A link between processes through torch.distributed: gloo on CPUs, nccl on GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ray_l4.config.traits import CODECS
from ray_l4.errors import PeerLostError
from ray_l4.exchange.codecs import Payload
from ray_l4.exchange.links import Shapes, Ticket, Traffic, named_dtype, shapes_of

_GLOO_DEFECT = "enforce fail"
"""Part of gloo's messages about defects of the program, such as buffers of different sizes."""


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether torch.distributed or gloo raised this because another rank is gone or did not answer in time."""
    # Gloo has no exception class of its own for failed transfers.
    return isinstance(error, dist.DistError) or ("gloo" in str(error) and _GLOO_DEFECT not in str(error))


@dataclass
class Collective:
    """A link that sends payloads directly into their readers' memory; a ticket holds only their shapes.

    A reader gets its teachers' tickets before it receives their payloads, so if a peer died earlier, nobody waits for
    its payload. All ranks post transfers in the same order, by sender and reader, so that no two wait for each other
    (nccl serves them in order).
    """

    peer: int
    device: torch.device
    group: Any
    """The process group of the peers (``workers.rendezvous.join``)."""
    ranks: Mapping[int, int]
    """Peer -> its rank in the group."""
    _pending: list[tuple[Payload, tuple[int, ...]]] = field(default_factory=list)
    """The payloads that have been published but not sent, each with its readers."""
    _transfers: list[tuple[Any, Tensor]] = field(default_factory=list)
    """Posted transfers, each with the tensor it reads or writes."""
    _traffic: Traffic = field(default_factory=Traffic)

    def publish(self, payload: Payload, readers: Sequence[int], *, at_once: bool) -> Ticket:
        self._finish()
        tensors = {name: self._to_group_memory(tensor) for name, tensor in payload.tensors.items()}
        self._pending.append((Payload(payload.codec, tensors), tuple(readers)))
        if at_once:
            self._post({})
        return Ticket(self.peer, payload.codec, payload.num_bytes, shapes_of(payload))

    def collect(self, tickets: Sequence[Ticket]) -> list[Payload]:
        # After a peer was lost, some peers may only predict while others catch up; then no sum over all is possible.
        if tickets and CODECS[tickets[0].codec].reduces and len(self._pending[-1][1]) == len(self.ranks) - 1:
            return [self._mean_of_others()]
        received = {ticket.sender: Payload(ticket.codec, self._empty_tensors(ticket.content)) for ticket in tickets}
        self._post(received)
        self._finish()
        return [
            Payload(own.codec, {name: tensor.to(self.device) for name, tensor in own.tensors.items()})
            for own in (received[ticket.sender] for ticket in tickets)
        ]

    def traffic(self) -> tuple[int, int]:
        return self._traffic.take()

    def _post(self, received: Mapping[int, Payload]) -> None:
        """Start to send the pending payloads, and to receive into ``received`` (sender -> payload)."""
        pending, self._pending = self._pending, []
        outgoing = {
            (self.peer, reader): payload for payload, readers in pending for reader in readers if reader in self.ranks
        }
        incoming = {(sender, self.peer): payload for sender, payload in received.items()}
        for (sender, reader), payload in sorted((outgoing | incoming).items(), key=lambda item: item[0]):
            sends = sender == self.peer
            move, partner = (self.group.send, reader) if sends else (self.group.recv, sender)
            for tag, name in enumerate(sorted(payload.tensors)):
                tensor = payload.tensors[name]
                if tensor.numel():
                    with self._reporting_lost_peers():
                        self._transfers.append((move([tensor], self.ranks[partner], tag), tensor))
            self._traffic.sent += payload.num_bytes if sends else 0
            self._traffic.received += 0 if sends else payload.num_bytes

    def _finish(self) -> None:
        """Wait for the posted transfers, up to the group's timeout. Raises PeerLostError if a peer is gone."""
        transfers, self._transfers = self._transfers, []
        with self._reporting_lost_peers():
            for work, _ in transfers:
                work.wait()

    @contextmanager
    def _reporting_lost_peers(self) -> Iterator[None]:
        """Convert errors of lost connections within this context to PeerLostError."""
        try:
            yield
        except RuntimeError as error:
            if not is_lost_connection(error):
                raise
            reason = str(error).splitlines()[0]
            raise PeerLostError(
                f"student {self.peer}: a peer is gone; predictions did not get through: {reason}"
            ) from error

    def _mean_of_others(self) -> Payload:
        """Return the mean of the other peers' probabilities: one sum over all N peers, minus this peer's own.

        A ring all-reduce sends and receives each byte 2 (N - 1) / N times.
        """
        ((own_payload, _),), self._pending = self._pending, []
        others = len(self.ranks) - 1
        means = {}
        for name in sorted(own_payload.tensors):
            own = own_payload.tensors[name]
            total = own.clone()
            if own.numel():
                with self._reporting_lost_peers():
                    self._transfers.append((self.group.allreduce([total]), total))
            means[name] = total
        self._finish()
        share = 2 * others * own_payload.num_bytes // len(self.ranks)
        self._traffic.sent += share
        self._traffic.received += share
        # Rounding can make the difference negative if the others give a token almost no probability.
        return Payload(
            own_payload.codec,
            {
                n: total.sub_(own_payload.tensors[n]).div_(others).clamp_(min=0).to(self.device)
                for n, total in means.items()
            },
        )

    def _to_group_memory(self, tensor: Tensor) -> Tensor:
        """Move the tensor to memory that the group can read; gloo cannot read GPU memory."""
        return tensor.to(self._memory).contiguous()

    def _empty_tensors(self, shapes: Shapes) -> dict[str, Tensor]:
        return {
            name: torch.empty(shape, dtype=named_dtype(dtype), device=self._memory)
            for name, (dtype, shape) in shapes.items()
        }

    @property
    def _memory(self) -> torch.device:
        return self.device if self.group.name() == "nccl" else torch.device("cpu")
