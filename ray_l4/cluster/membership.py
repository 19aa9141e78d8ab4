"""Membership: which students of a run are alive, which are lost, and which calls count."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ray_l4.cluster.handles import EvaluatorHandle, StudentHandle
from ray_l4.cluster.rpc import get, get_first
from ray_l4.cluster.spawn import Spawner
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import PeerLostError
from ray_l4.methods import Topology

log = logging.getLogger("ray_l4.coordinator")


@dataclass(frozen=True)
class RollCall:
    """Who answered when all present students were asked to rejoin."""

    lost: Mapping[int, str]
    """Slots of those that did not, and how each was lost."""
    next_steps: Mapping[int, int]
    """Slots of those that did, and the step that each is to learn next."""


class Membership:
    """Owns the students of a run, and alone drops, replaces and levels them.

    ``fence`` is the number that every call to a student carries. Whenever the membership changes, or a stage begins, it
    grows, and students refuse calls that carry an older one.
    """

    def __init__(
        self, spawner: Spawner, cluster: ClusterConfig, topology: Topology, lost: Mapping[int, str] | None = None
    ) -> None:
        """Start every student but the ``lost`` (slot -> how it was lost). ``await_start`` waits for them."""
        self._spawner = spawner
        self._cluster = cluster
        self._whole = topology
        self._lost = dict(lost or {})
        self._fence = 0
        self._students = [
            StudentHandle(slot, spawner.rpc, ()) if slot in self._lost else spawner.student(slot)
            for slot in range(len(spawner.peers))
        ]

    @property
    def students(self) -> list[StudentHandle]:
        """Every slot's student; a lost one has no ranks."""
        return self._students

    @property
    def fence(self) -> int:
        """The number that calls have to carry now."""
        return self._fence

    @property
    def lost(self) -> Mapping[int, str]:
        """Slots of students that were lost and not replaced, and how each was lost."""
        return dict(self._lost)

    @property
    def present(self) -> list[int]:
        """Slots of the students that are not lost, in ascending order."""
        return [slot for slot in range(len(self._students)) if slot not in self._lost]

    @property
    def topology(self) -> Topology:
        """Who learns from whom among the peers that are present."""
        return self._whole.without(self._lost)

    def await_start(self, evaluators: list[EvaluatorHandle]) -> None:
        """Wait until all workers stand ready. Raises what keeps one from starting, PeerLostError if one is late."""
        limit = self._cluster.timeouts.start
        starting = {slot: self._students[slot].ready() for slot in self.present}
        also = [evaluator.ready() for evaluator in evaluators]
        for slot, references in starting.items():
            self._students[slot].wait(references, limit, "start")
        for index, reference in enumerate(also):
            get(self._spawner.rpc, reference, limit, f"evaluator {index}, start")

    def raise_fence(self) -> int:
        """Make calls that were submitted before void for students that learn of the new fence; returns it."""
        self._fence += 1
        return self._fence

    def form_groups(self) -> None:
        """Have the present students form the process groups that their link needs: ranks of equal number meet.

        Raises PeerLostError if they do not meet in time.
        """
        store = self._spawner.rendezvous
        if store is None or not self._cluster.exchange.transport_traits.process_group:
            return
        present = self.present
        ranks = {peer: rank for rank, peer in enumerate(present)}
        groups = [
            store.members(f"fence-{self._fence}/rank-{rank}", len(present))
            for rank in range(self._cluster.students.shards_per_student)
        ]
        asked = {peer: self._students[peer].meet([group[ranks[peer]] for group in groups], ranks) for peer in present}
        for peer, references in asked.items():
            self._students[peer].wait(references, self._cluster.timeouts.start, "process group")

    def roll_call(self) -> RollCall:
        """Ask all present students to drop the step under way and rejoin under a new fence.

        When this returns, all calls submitted before have been served, or never will be. A student that hangs is lost
        once it has not answered for ``timeouts.step``, and so are those that wait for it, since Ray serves the calls of
        an actor in order. A student of several ranks counts as lost: its ranks may wait for one that is gone.
        """
        fence, present = self.raise_fence(), self.present
        if self._cluster.students.shards_per_student > 1:
            return RollCall(dict.fromkeys(present, "one of its or its peers' ranks is gone"), {})
        asked = {slot: self._students[slot].rejoin(fence) for slot in present}
        lost: dict[int, str] = {}
        next_steps: dict[int, int] = {}
        limit = self._cluster.timeouts.step
        deadline = time.monotonic() + limit  # one for all, since they answer side by side
        for slot, references in asked.items():
            remaining = max(0.0, deadline - time.monotonic())
            try:
                what = f"student {slot}, asked for {limit:g} s"
                next_steps[slot] = get_first(self._spawner.rpc, references, remaining, what)
            except PeerLostError as error:
                lost[slot] = str(error)
        log.warning("fence %d: lost %s; next steps %s", fence, lost, next_steps)
        return RollCall(lost, next_steps)

    def drop(self, lost: Mapping[int, str]) -> None:
        """Go on without these students (slot -> how it was lost) for the rest of the run."""
        for slot in lost:
            self._students[slot].end()
            self._students[slot] = StudentHandle(slot, self._spawner.rpc, ())
        self._lost |= lost

    def replace(self, lost: Collection[int]) -> None:
        """Start new students in these slots, with the weights of the start.

        Raises PeerLostError if one does not start in time: its node may be gone, and no other has room.
        """
        for slot in lost:
            self._students[slot].end()
            self._students[slot] = self._spawner.student(slot)
            self._students[slot].wait(self._students[slot].ready(), self._cluster.timeouts.start, "start")

    def end(self) -> None:
        """End all students."""
        for student in self._students:
            student.end()


def levelled(next_steps: Mapping[int, int], ends: Mapping[int, int]) -> list[dict[int, range]]:
    """Plan how students that were interrupted at different steps go on: those behind catch up, then all together.

    ``next_steps``: slot -> its next step; ``ends``: slot -> the step before which it stops. Returns spans of steps,
    each of which slots learn side by side.
    """
    spans = []
    now = {slot: next_steps[slot] for slot in ends}
    while len(set(now.values())) > 1:
        low, *higher = sorted(set(now.values()))
        behind = [slot for slot, step in now.items() if step == low]
        spans.append({slot: range(low, min(higher[0], ends[slot])) for slot in behind})
        now |= dict.fromkeys(behind, higher[0])
    return [*spans, {slot: range(step, ends[slot]) for slot, step in now.items()}]
