"""Membership: which students of a run are present, which are lost, and which calls are valid."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ray_l4.cluster.handles import StudentHandle
from ray_l4.cluster.rpc import get_first
from ray_l4.cluster.spawn import Spawner
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import PeerLostError
from ray_l4.methods import Topology

_MOST_STARTS = 3
"""Further attempts to start a student that dies while it starts."""

log = logging.getLogger("ray_l4.coordinator")


@dataclass(frozen=True)
class RollCall:
    """The outcome of asking all present students to rejoin."""

    lost: Mapping[int, str]
    """Slots of the students that did not answer, and how each was lost."""
    next_steps: Mapping[int, int]
    """Slots of the students that answered, and the next step of each."""


class Membership:
    """Owns the students of a run. Nothing else drops or replaces them.

    ``fence`` is the number that every call to a student carries. It grows whenever the membership changes or a stage
    begins, and students refuse calls with an older number.
    """

    def __init__(
        self, spawner: Spawner, cluster: ClusterConfig, topology: Topology, lost: Mapping[int, str] | None = None
    ) -> None:
        """Start every student except the ``lost`` ones (slot -> how it was lost). ``await_start`` waits for them."""
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
        """The student of every slot; a lost one has no ranks."""
        return self._students

    @property
    def fence(self) -> int:
        """The number that calls must carry now."""
        return self._fence

    @property
    def lost(self) -> Mapping[int, str]:
        """Slots of the students that were lost and not replaced, and how each was lost."""
        return dict(self._lost)

    @property
    def present(self) -> list[int]:
        """Slots of the students that are not lost, in ascending order."""
        return [slot for slot in range(len(self._students)) if slot not in self._lost]

    @property
    def topology(self) -> Topology:
        """The topology of the peers that are present."""
        return self._whole.without(self._lost)

    def await_start(self) -> None:
        """Wait until all students are ready. Those that die meanwhile are replaced, up to ``_MOST_STARTS`` times.

        Raises the error of one that fails, PeerLostError if one dies every time or is late.
        """
        starting = self.present
        for attempt in range(_MOST_STARTS + 1):
            died = self._await_ready(starting, give_up=attempt == _MOST_STARTS)
            for slot in died:
                self._students[slot].end()
                self._students[slot] = self._spawner.student(slot)
            starting = list(died)

    def raise_fence(self) -> int:
        """Return a new fence. A student that has been told of it refuses all calls submitted before."""
        self._fence += 1
        return self._fence

    def form_groups(self) -> None:
        """Form the process groups that the link needs: one for each rank number, of the present students' ranks.

        Raises PeerLostError if the ranks do not meet in time.
        """
        store = self._spawner.rendezvous
        if store is None or not self._cluster.exchange.transport_traits.process_group:
            return
        present = self.present
        ranks = {peer: rank for rank, peer in enumerate(present)}
        name = uuid.uuid4().hex  # a group's name must never repeat
        groups = [
            store.members(f"fence-{self._fence}/{name}/rank-{rank}", len(present))
            for rank in range(self._cluster.students.shards_per_student)
        ]
        asked = {peer: self._students[peer].meet([group[ranks[peer]] for group in groups], ranks) for peer in present}
        for peer, references in asked.items():
            self._students[peer].wait(references, self._cluster.timeouts.start, "process group")

    def roll_call(self) -> RollCall:
        """Ask all present students to drop the step under way and rejoin under a new fence.

        When this returns, every call submitted before either has been served or never will be. A student that hangs
        counts as lost if it does not answer within ``timeouts.step``, and so do students that wait for it, since Ray
        serves an actor's calls in order. Students of several ranks always count as lost, because their ranks may be
        waiting for a rank that is gone.
        """
        fence, present = self.raise_fence(), self.present
        if self._cluster.students.shards_per_student > 1:
            return RollCall(dict.fromkeys(present, "one of its ranks, or of its peers' ranks, is gone"), {})
        asked = {slot: self._students[slot].rejoin(fence) for slot in present}
        lost: dict[int, str] = {}
        next_steps: dict[int, int] = {}
        limit = self._cluster.timeouts.step
        deadline = time.monotonic() + limit  # one deadline for all, since they answer in parallel
        for slot, references in asked.items():
            remaining = max(0.0, deadline - time.monotonic())
            try:
                what = f"student {slot}, asked to rejoin within {limit:g} s"
                next_steps[slot] = get_first(self._spawner.rpc, references, remaining, what)
            except PeerLostError as error:
                lost[slot] = str(error)
        log.warning("fence %d: lost %s; next steps %s", fence, lost, next_steps)
        return RollCall(lost, next_steps)

    def drop(self, lost: Mapping[int, str]) -> None:
        """Go on without the ``lost`` students (slot -> how it was lost) for the rest of the run."""
        for slot in lost:
            self._students[slot].end()
            self._students[slot] = StudentHandle(slot, self._spawner.rpc, ())
        self._lost |= lost

    def replace(self, lost: Collection[int]) -> None:
        """Start new students in the slots of the ``lost`` ones, with initial weights.

        Raises PeerLostError if one does not start in time: its node may be gone, and no other may have room.
        """
        for slot in lost:
            self._students[slot].end()
        for slot in lost:
            self._students[slot] = self._spawner.student(slot)
        self._await_ready(list(lost), give_up=True)

    def _await_ready(self, slots: Collection[int], *, give_up: bool) -> list[int]:
        """Wait until the students in ``slots`` are ready. Returns those that died; raises instead to ``give_up``."""
        starting = {slot: self._students[slot].ready() for slot in slots}
        died = []
        for slot, references in starting.items():
            try:
                self._students[slot].wait(references, self._cluster.timeouts.start, "start")
            except PeerLostError as error:
                if give_up:
                    raise
                log.warning("a student died while it started, and is replaced: %s", error)
                died.append(slot)
        return died

    def end(self) -> None:
        """End all students."""
        for student in self._students:
            student.end()


def levelled(next_steps: Mapping[int, int], ends: Mapping[int, int]) -> list[dict[int, range]]:
    """Return the spans of steps by which students that were interrupted at different steps finish together.

    Those that are behind catch up first. Each span maps the slots that learn side by side to their steps.
    ``next_steps``: slot -> its next step; ``ends``: slot -> the step before which it stops.
    """
    spans = []
    now = {slot: next_steps[slot] for slot in ends}
    while len(set(now.values())) > 1:
        low, *higher = sorted(set(now.values()))
        behind = [slot for slot, step in now.items() if step == low]
        spans.append({slot: range(low, min(higher[0], ends[slot])) for slot in behind})
        now |= dict.fromkeys(behind, higher[0])
    return [*spans, {slot: range(step, ends[slot]) for slot, step in now.items()}]
