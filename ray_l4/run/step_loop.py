"""The training of one stage, as the coordinator sees it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray_l4.cluster.rpc import Transport
from ray_l4.methods import Topology

Ranks = Sequence[Any]
"""The processes that one peer spans."""

StepFigures = Mapping[int, dict[str, float]]
"""Figures of one step, by peer, of those that learned in it."""


def train_steps(
    transport: Transport,
    peers: Sequence[Ranks],
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
    its turn) is asked to predict the student's batch. Of a peer that spans several ranks, each one speaks with the
    rank of the same number of the other peers, and all of them give the same figures.

    Calls are submitted ``steps_ahead`` steps early, so no student waits for the coordinator, and predictions go from
    peer to peer: their references are dropped as soon as they are handed on. ``on_step`` sees the figures of
    every step, in order for each peer, and late. Raises PeerError if a peer dies, fails, or takes longer than
    ``timeout`` seconds.
    """
    window: deque[dict[int, tuple[int, list[Any]]]] = deque()

    def collect() -> None:
        by_step: dict[int, dict[int, dict[str, float]]] = {}
        for peer, (step, references) in window.popleft().items():
            figures, *_ = transport.get_all(references, timeout, f"student {peer}, {where}, step {step}")
            by_step.setdefault(step, {})[peer] = figures
        for step, by_peer in by_step.items():
            on_step(step, by_peer)

    def each(peer: int, method: str, *arguments: Any) -> list[Any]:
        return [transport.submit(rank, method, generation, *arguments) for rank in peers[peer]]

    def submit(turn: int) -> dict[int, tuple[int, list[Any]]]:
        learning = {peer: own[turn] for peer, own in steps.items() if turn < len(own)}
        readers = {
            teacher: tuple(peer for peer in learning if (teacher, peer) in topology.edges)
            for teacher in sorted({teacher for teacher, _ in topology.edges} | learning.keys())
        }
        sent = {peer: each(peer, "forward", step, readers[peer]) for peer, step in learning.items()}
        # Students that learn from one teacher share the batch, so the first one's stands for all.
        student, step = next(iter(learning.items()))
        for teacher, own in readers.items():
            if own and teacher not in sent:
                sent[teacher] = each(teacher, "predict", step, student, own)
        done = {}
        for peer, step in learning.items():
            tickets = zip(*(sent[teacher] for teacher in topology.teachers_of(peer)), strict=True)
            per_rank = list(tickets) or [()] * len(peers[peer])
            done[peer] = (
                step,
                [
                    transport.submit(rank, "backward", generation, step, *own)
                    for rank, own in zip(peers[peer], per_rank, strict=True)
                ],
            )
        return done

    for turn in range(max(map(len, steps.values()))):
        window.append(submit(turn))
        if len(window) > steps_ahead:
            collect()
    while window:
        collect()
