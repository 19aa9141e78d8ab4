"""A link from process to process with torch.distributed: gloo on CPUs, nccl on GPUs."""

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

_NOT_A_LOSS = "enforce fail"
"""In messages of gloo about a defect, such as buffers of different sizes."""


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether torch.distributed or gloo raised this because another rank is gone or did not come in time."""
    # Gloo has no class of its own for what goes wrong on the way.
    return isinstance(error, dist.DistError) or ("gloo" in str(error) and _NOT_A_LOSS not in str(error))


@dataclass
class Collective:
    """Predictions go straight into the memory of their readers; a ticket only carries their shapes.

    A reader has its teachers' tickets before it asks for their predictions, so a peer that died before it had any is
    noticed without waiting for it. All ranks post transfers in the same order, by sender and reader, so that no two
    wait for each other (nccl serves them in that order).
    """

    me: int
    device: torch.device
    group: Any
    """The process group of the peers (``workers.rendezvous.join``)."""
    ranks: Mapping[int, int]
    """Peer -> its rank in the group."""
    _kept: tuple[Payload, tuple[int, ...]] = (Payload(), ())
    """The payload that was published and not sent yet, and its readers."""
    _under_way: list[tuple[Any, Tensor]] = field(default_factory=list)
    """Posted transfers, with the memory they use."""
    _traffic: Traffic = field(default_factory=Traffic)

    def publish(self, payload: Payload, readers: Sequence[int], *, at_once: bool) -> Ticket:
        self._finish()
        staged = {name: self._staged(tensor) for name, tensor in payload.tensors.items()}
        self._kept = Payload(payload.codec, staged), tuple(readers)
        if at_once:
            self._post({})
        return Ticket(self.me, payload.codec, payload.num_bytes, shapes_of(payload))

    def collect(self, tickets: Sequence[Ticket]) -> list[Payload]:
        # After a loss some learn while others only predict; then payloads are handed over one by one.
        if tickets and CODECS[tickets[0].codec].reduces and len(self._kept[1]) == len(self.ranks) - 1:
            return [self._mean_of_others()]
        received = {ticket.sender: Payload(ticket.codec, self._room_for(ticket.content)) for ticket in tickets}
        self._post(received)
        self._finish()
        return [
            Payload(own.codec, {name: tensor.to(self.device) for name, tensor in own.tensors.items()})
            for own in (received[ticket.sender] for ticket in tickets)
        ]

    def traffic(self) -> tuple[int, int]:
        return self._traffic.take()

    def _post(self, received: Mapping[int, Payload]) -> None:
        """Begin to send the kept payload, and to receive into ``received``, by sender."""
        kept, readers = self._kept
        self._kept = Payload(), ()
        outgoing = {(self.me, reader): kept for reader in readers if reader in self.ranks}
        incoming = {(sender, self.me): payload for sender, payload in received.items()}
        for (sender, reader), payload in sorted((outgoing | incoming).items(), key=lambda item: item[0]):
            sends = sender == self.me
            move, partner = (self.group.send, reader) if sends else (self.group.recv, sender)
            for tag, name in enumerate(sorted(payload.tensors)):
                tensor = payload.tensors[name]
                if tensor.numel():
                    with self._reaching():
                        self._under_way.append((move([tensor], self.ranks[partner], tag), tensor))
            self._traffic.sent += payload.num_bytes if sends else 0
            self._traffic.received += 0 if sends else payload.num_bytes

    def _finish(self) -> None:
        """Wait for the posted transfers, as long as the group allows. Raises PeerLostError if a peer is gone."""
        under_way, self._under_way = self._under_way, []
        with self._reaching():
            for work, _ in under_way:
                work.wait()

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Within this context peers are waited for. Raises PeerLostError if one of them is gone."""
        try:
            yield
        except RuntimeError as error:
            if not is_lost_connection(error):
                raise
            reason = str(error).splitlines()[0]
            raise PeerLostError(
                f"student {self.me}: a peer is gone; predictions did not get through: {reason}"
            ) from error

    def _mean_of_others(self) -> Payload:
        """Return the mean of the other peers' probabilities, from one sum over all of them.

        A ring sends and receives each byte 2 (N - 1) / N times, whatever the number N of peers.
        """
        (kept, _), self._kept = self._kept, (Payload(), ())
        others = len(self.ranks) - 1
        means = {}
        for name in sorted(kept.tensors):
            own = kept.tensors[name]
            total = own.clone()
            if own.numel():
                with self._reaching():
                    self._under_way.append((self.group.allreduce([total]), total))
            means[name] = total
        self._finish()
        share = 2 * others * kept.num_bytes // len(self.ranks)
        self._traffic.sent += share
        self._traffic.received += share
        # Rounding can make the difference negative where the others give a token hardly any probability.
        return Payload(
            kept.codec,
            {n: total.sub_(kept.tensors[n]).div_(others).clamp_(min=0).to(self.device) for n, total in means.items()},
        )

    def _staged(self, tensor: Tensor) -> Tensor:
        """Copy the tensor to where the group can read it: gloo does not reach into a GPU."""
        return tensor.to(self._memory).contiguous()

    def _room_for(self, shapes: Shapes) -> dict[str, Tensor]:
        return {
            name: torch.empty(shape, dtype=named_dtype(dtype), device=self._memory)
            for name, (dtype, shape) in shapes.items()
        }

    @property
    def _memory(self) -> torch.device:
        return self.device if self.group.name() == "nccl" else torch.device("cpu")
