"""What is to be measured, and on what: the ways for predictions to travel, and a profile for each of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

from pydantic import ValidationError

from ray_l4.bench.workload import Workload
from ray_l4.cluster.placement import check_room, local_resources, usable_cores
from ray_l4.config.cluster import ClusterConfig, ExchangeConfig
from ray_l4.errors import ClusterError, ConfigError, nearest
from ray_l4.exchange.codecs import build_codec

_ONE_PROCESS = "in_process"
_LEAST_SHARE = 1e-4
"""Of a CPU, in Ray."""
_STORE_AT_LEAST = 200_000_000
_AROUND_A_STEP = 3
"""Of each student, predictions that the object store holds beside those of the steps submitted ahead."""
_LIBRARIES = 500_000_000
"""Bytes of a process that has loaded PyTorch and Transformers and built nothing."""
_PER_PARAMETER = 20
"""Bytes: weight, gradient, two moments, and a temporary of the update."""
_BUFFERS = 4
"""Of the size of a student's dense predictions: logits, their gradient, what is sent, and temporaries."""


@dataclass(frozen=True)
class Way:
    """One way for predictions to travel."""

    transport: str
    codec: str
    precision: str = "float32"

    @property
    def in_one_process(self) -> bool:
        """Whether all students are in one process, without Ray."""
        return self.transport == _ONE_PROCESS

    @property
    def by_reference(self) -> bool:
        """Whether predictions lie ready for whoever reads them, so that publishing ends before anyone reads."""
        return self.transport in (_ONE_PROCESS, "object_store")

    @property
    def alone(self) -> Way:
        """The same in one process, with which it is compared. There is no ``mean`` there: dense ones are averaged."""
        return Way(_ONE_PROCESS, "dense") if self.codec == "mean" else Way(_ONE_PROCESS, self.codec, self.precision)


@dataclass(frozen=True)
class Plan:
    """A whole measurement. Every list is in the order in which it is gone through."""

    workload: Workload
    peers: Sequence[int]
    transports: Sequence[str]
    codecs: Sequence[str]
    precisions: Sequence[str]
    steps: int
    """Measured in a round, if there are two students; fewer for more, so that a round takes about as long."""
    repeats: int
    """Rounds: each is some steps in one process, then as many in the way under test."""
    threads: int
    """Of PyTorch for each student."""
    gpus: float
    """Share of a GPU for each student."""
    address: str | None
    """Of a running cluster."""
    spread: bool
    """Every student on a node of its own."""

    def steps_of(self, peers: int) -> int:
        """Measured in a round with so many students."""
        return max(1, self.steps * 2 // peers)

    def ways(self) -> list[Way]:
        """Every transport with every codec and precision that it can carry, those of one codec together.

        Raises ConfigError for a name that does not exist, or one that goes with no other that was asked for.
        """
        asked = {"codec": self.codecs, "precision": self.precisions, "transport": self.transports}
        for key, names in asked.items():
            _require_known(key, names)
        found, refused = [], {}
        for codec, precision, transport in product(self.codecs, self.precisions, self.transports):
            way = Way(transport, codec, precision)
            try:
                build_codec(self.profile(way, 2).exchange, self.workload.experiment(2))
                found.append(way)
            except ValidationError as error:
                refused[way] = error.errors()[0]["msg"].removeprefix("Value error, ")
            except ConfigError as error:
                refused[way] = str(error)
        for key, names in asked.items():
            for name in names:
                if not any(getattr(way, key) == name for way in found):
                    why = next(text for way, text in refused.items() if getattr(way, key) == name)
                    raise ConfigError(f"{name} goes with none of the others that were asked for: {why}")
        return found

    def profile(self, way: Way, peers: int) -> ClusterConfig:
        """Where the students run. Raises ValidationError (pydantic) for a way that cannot be."""
        cores = usable_cores()
        # In one process PyTorch may use as many cores as the processes of the others together.
        threads = min(self.threads * peers, cores) if way.in_one_process else self.threads
        share = (
            float(self.threads)
            if self.address
            else min(self.threads, max(_LEAST_SHARE, cores / peers // _LEAST_SHARE * _LEAST_SHARE))
        )
        sections: dict[str, Mapping[str, Any]] = {
            "ray": {"address": self.address, "object_store_memory": self._store_memory()},
            "students": {"cpus": share, "gpus": self.gpus, "threads": threads},
            "exchange": {"transport": way.transport, "codec": way.codec, "precision": way.precision},
            "placement": {"strategy": "STRICT_SPREAD" if self.spread else "PACK"},
        }
        profile = ClusterConfig.model_validate({"name": "bench", **sections})
        # A run needs an evaluator, and the profile insists on one; here nothing is scored.
        return profile.model_copy(update={"evaluators": profile.evaluators.model_copy(update={"count": 0})})

    def refuse_without_room(self, ways: Sequence[Way]) -> None:
        """Raise ClusterError if this machine has too few devices, or too little memory, for the most students.

        What a running cluster has is known once it is joined.
        """
        if self.address:
            return
        peers, load = max(self.peers), self.workload
        for way in ways:
            if not way.in_one_process:
                profile = self.profile(way, peers)
                check_room(peers, profile, [local_resources(profile)])
        received = (peers - 1) * load.dense_bytes
        student = _LIBRARIES + _PER_PARAMETER * load.num_parameters + _BUFFERS * load.dense_bytes + received
        needed, there = peers * student + self._store_memory(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > there:
            raise ClusterError(
                f"no room for {peers} students of {load.num_parameters:,} parameters that exchange {load.positions} "
                f"predictions of {load.vocab:,} entries: they take about {needed / 1e9:.1f} GB together, and this "
                f"machine has {there / 1e9:.1f} GB. Ask for fewer --peers, or a smaller --vocab, --tokens or --width."
            )

    def _store_memory(self) -> int:
        """Bytes for the object store, such that it never overflows to the disk (RAY.md 2)."""
        held = ExchangeConfig().steps_ahead + _AROUND_A_STEP
        return max(_STORE_AT_LEAST, max(self.peers) * held * self.workload.dense_bytes)


def _require_known(key: str, names: Sequence[str]) -> None:
    known = get_args(ExchangeConfig.model_fields[key].annotation)
    for name in names:
        if name not in known:
            raise ConfigError(f"no {key} is called {name!r}. {nearest(name, known)}")
