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

    All begin with the first of their steps, whatever its number: models that are trained independently of each other
    may be at different ones. Peers that learn from one another, or from one teacher, have the same.

    A teacher that learns as well sends what its forward pass gives. One that does not (trained before, or waiting for
    its turn) is asked to predict the student's batch.

    Calls are submitted ``steps_ahead`` steps early, so no student waits for the coordinator, and predictions go from
    peer to peer: their references are dropped as soon as they are handed on. ``on_step`` sees the figures of
    every step, in order for each peer, and late. Raises PeerError if a peer dies, fails, or takes longer than
    ``timeout`` seconds.
    """
    window: deque[dict[int, tuple[int, Any]]] = deque()

    def collect() -> None:
        by_step: dict[int, dict[int, dict[str, float]]] = {}
        for peer, (step, reference) in window.popleft().items():
            figures = transport.get(reference, timeout, f"student {peer}, {where}, step {step}")
            by_step.setdefault(step, {})[peer] = figures
        for step, by_peer in by_step.items():
            on_step(step, by_peer)

    def submit(turn: int) -> dict[int, tuple[int, Any]]:
        learning = {peer: own[turn] for peer, own in steps.items() if turn < len(own)}
        needed = {teacher for peer in learning for teacher in topology.teachers_of(peer)}
        sent = {
            peer: transport.submit(peers[peer], "forward", generation, step, peer in needed)
            for peer, step in learning.items()
        }
        # Students that learn from one teacher share the batch, so the first one's stands for all.
        student, step = next(iter(learning.items()))
        for teacher in sorted(needed - sent.keys()):
            sent[teacher] = transport.submit(peers[teacher], "predict", generation, step, student)
        done = {}
        for peer, step in learning.items():
            targets = [sent[teacher] for teacher in topology.teachers_of(peer)]
            done[peer] = step, transport.submit(peers[peer], "backward", generation, step, *targets)
        return done

    for turn in range(max(map(len, steps.values()))):
        window.append(submit(turn))
        if len(window) > steps_ahead:
            collect()
    while window:
        collect()
