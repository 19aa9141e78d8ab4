"""Warns of students that teach each other and stay equal: they learn nothing from each other."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from ray_l4.cluster.membership import Membership
from ray_l4.cluster.rpc import Rpc, get
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import Topology, peer_experiment
from ray_l4.run.context import RunContext
from ray_l4.setup.setup import Setup


class EqualPeers:
    """Compares the weights of students at the beginning of stages, and warns once."""

    def __init__(self, context: RunContext, rpc: Rpc, membership: Membership) -> None:
        self._context = context
        self._rpc = rpc
        self._membership = membership
        self._warned = False

    def look(self, topology: Topology, tables: Mapping[int, Any]) -> None:
        """Warn if students that teach each other have begun a stage with equal weights and nothing makes them differ.

        ``tables``: student -> its examples; students with the same object have the same batches.
        """
        experiment = self._context.setup.experiment
        taught = any(teacher in topology.students for teacher, _ in topology.edges)
        # Some students have an order of examples each, and random payloads a seed each.
        distillation = experiment.distillation
        together = distillation.schedule == "simultaneous" and distillation.batches != "own"
        if self._warned or not taught or not together or self._context.cluster.exchange.codec_traits.random:
            return
        states = {student: self._state(student, id(tables[student])) for student in topology.students}
        equal = staying_equal(topology, states)
        if equal:
            self._warned = True
            self._context.progress.add_event(_warning(equal, self._context.setup))

    def _state(self, student: int, table: int) -> Hashable:
        """Return all that decides what a student learns beside its teachers; unique if it has dropout of its own."""
        references = self._membership.students[student].digest()
        limit = self._context.cluster.timeouts.start
        ranks = [get(self._rpc, each, limit, f"student {student}, digest") for each in references]
        optim = peer_experiment(self._context.setup.experiment, student).optim
        own = student if any(rank.dropout for rank in ranks) else None
        return tuple(rank.weights for rank in ranks), optim.model_dump_json(), table, own


def staying_equal(topology: Topology, states: Mapping[int, Hashable]) -> list[int]:
    """List the students that have the same state as one of their teachers, and no other teachers than it has.

    ``states``: student -> its state. A teacher that is not among them is unlike all others.
    """

    def others(student: int) -> set[Hashable]:
        return {states.get(teacher, teacher) for teacher in topology.teachers_of(student)} - {states[student]}

    pairs = [(one, other) for one, other in topology.edges if one in states and states[one] == states[other]]
    return sorted({student for pair in pairs if others(pair[0]) == others(pair[1]) for student in pair})


def _warning(equal: list[int], setup: Setup) -> str:
    experiment = setup.experiment
    named = ", ".join(map(str, equal[:-1])) + f" and {equal[-1]}"
    remedies = [
        "distillation.batches: own",
        "a dropout (" + _dropout_keys(experiment) + ")",
        "another seed or learning rate for one (peers.each)",
    ]
    drawn = experiment.model.from_scratch or experiment.model.lora or setup.tokenizer.fresh
    if experiment.peers.init == "shared" and drawn:
        remedies.insert(1, "peers.init: own")
    elif not drawn:
        remedies[-1] = "another learning rate or model for one (peers.each)"
    return (
        f"warning: students {named} teach each other, but have equal weights, equal batches and no dropout: the peers "
        f"will stay equal and learn nothing from each other. Set {', or '.join(remedies)}."
    )


def _dropout_keys(experiment: ExperimentConfig) -> str:
    if experiment.model.from_scratch is not None:
        return "model.from_scratch.dropout"
    return "model.lora.dropout" if experiment.model.lora is not None else "peers.each.N.dropout"
