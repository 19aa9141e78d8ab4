"""The training of one stage, as the coordinator sees it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray_l4.exchange.transports import Transport
from ray_l4.methods import Topology

StepFigures = Mapping[int, dict[str, float]]
"""Figures of one step, by peer, of those that learned in it."""


def train_steps(
    transport: Transport,
    peers: Sequence[Any],
    topology: Topology,
    generation: int,
    steps: Mapping[int, range],
    *,
    steps_ahead: int,
    timeout: float,
    where: str,
    on_step: Callable[[int, StepFigures], None],
) -> None:
    """Let peers learn side by side, each over its own ``steps``, from their teachers' predictions of the same step.

    A teacher that learns as well sends what its forward pass gives. One that does not (trained before, or waiting for
    its turn) is asked to predict the student's batch.

    Calls are submitted ``steps_ahead`` steps early, so no student waits for the coordinator, and predictions go from
    peer to peer: their references are dropped as soon as they are handed on. ``on_step`` sees the figures of
    every step, in order, and late. Raises PeerError if a peer dies, fails, or takes longer than ``timeout`` seconds.
    """
    window: deque[tuple[int, dict[int, Any]]] = deque()

    def collect() -> None:
        step, done = window.popleft()
        figures = {
            peer: transport.get(reference, timeout, f"student {peer}, {where}, step {step}")
            for peer, reference in done.items()
        }
        on_step(step, figures)

    def submit(step: int) -> dict[int, Any]:
        learning = [peer for peer, own in steps.items() if step in own]
        needed = {teacher for peer in learning for teacher in topology.teachers_of(peer)}
        sent = {
            peer: transport.submit(peers[peer], "forward", generation, step, peer in needed) for peer in learning
        }
        for teacher in sorted(needed - sent.keys()):
            # Students that learn side by side share the batch, so the first one's stands for all.
            sent[teacher] = transport.submit(peers[teacher], "predict", generation, step, learning[0])
        return {
            peer: transport.submit(
                peers[peer], "backward", generation, step, *(sent[teacher] for teacher in topology.teachers_of(peer))
            )
            for peer in learning
        }

    first, last = min(own.start for own in steps.values()), max(own.stop for own in steps.values())
    for step in range(first, last):
        window.append((step, submit(step)))
        if len(window) > steps_ahead:
            collect()
    while window:
        collect()
