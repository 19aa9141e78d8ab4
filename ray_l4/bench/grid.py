"""The cases that ``ray-l4 bench exchange`` measures, and the cluster profile of each."""

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
from ray_l4.config.traits import CODECS, TRANSPORTS
from ray_l4.errors import ClusterError, ConfigError, nearest
from ray_l4.exchange.codecs import build_codec

_IN_PROCESS = "in_process"
_LEAST_SHARE = 1e-4
"""Smallest share of a CPU in Ray."""
_LEAST_STORE_BYTES = 200_000_000
_STEPS_STORED = 3
"""Steps whose predictions the object store holds for each student, in addition to those submitted ahead."""
_PROCESS_BYTES = 500_000_000
"""A process that has imported PyTorch and transformers and built no model."""
_BYTES_PER_PARAMETER = 20
"""Weight, gradient, two moments, and a temporary of the update."""
_DENSE_BUFFERS = 4
"""Buffers as large as a student's dense predictions: logits, their gradient, the payload, and temporaries."""


@dataclass(frozen=True)
class BenchCase:
    """One combination of transport, codec and precision."""

    transport: str
    codec: str
    precision: str = "float32"

    @property
    def in_process(self) -> bool:
        """True if all students are in one process, without Ray."""
        return TRANSPORTS[self.transport].in_one_process

    @property
    def by_reference(self) -> bool:
        """True if predictions are stored for their readers, so that publishing ends before reading begins."""
        return TRANSPORTS[self.transport].by_reference

    @property
    def baseline(self) -> BenchCase:
        """The same in one process, to compare with; for ``mean``, which has no such form, dense predictions."""
        codec, precision = ("dense", "float32") if CODECS[self.codec].reduces else (self.codec, self.precision)
        return BenchCase(_IN_PROCESS, codec, precision)


@dataclass(frozen=True)
class StudentResources:
    """The resources of each student, and the cluster that has them."""

    threads: int
    """PyTorch threads."""
    gpus: float
    """Share of a GPU."""
    address: str | None
    """Address of a running cluster; None to start a local one."""
    spread: bool
    """True to put every student on a node of its own."""


@dataclass(frozen=True)
class BenchGrid:
    """A whole measurement: all cases at all numbers of peers, each in the order given."""

    workload: Workload
    peers: Sequence[int]
    transports: Sequence[str]
    codecs: Sequence[str]
    precisions: Sequence[str]
    steps: int
    """Measured steps of two students in a repeat; more students take fewer, so that a repeat takes about as long."""
    repeats: int
    """Repeats: each is some steps of the baseline, then as many of the case."""
    resources: StudentResources

    def steps_per_repeat(self, peers: int) -> int:
        """Return the measured steps of a repeat with this number of students."""
        return max(1, self.steps * 2 // peers)

    def cases(self) -> list[BenchCase]:
        """Return every transport with every codec and precision that it can carry, grouped by codec and precision.

        Raises ConfigError for an unknown name, or for one that cannot be combined with any of the others.
        """
        asked = {"codec": self.codecs, "precision": self.precisions, "transport": self.transports}
        for key, names in asked.items():
            _require_known(key, names)
        found, refused = [], {}
        for codec, precision, transport in product(self.codecs, self.precisions, self.transports):
            case = BenchCase(transport, codec, precision)
            try:
                build_codec(self.profile(case, 2).exchange, self.workload.experiment(2))
                found.append(case)
            except ValidationError as error:
                refused[case] = error.errors()[0]["msg"].removeprefix("Value error, ")
            except ConfigError as error:
                refused[case] = str(error)
        for key, names in asked.items():
            for name in names:
                if not any(getattr(case, key) == name for case in found):
                    reason = next(text for case, text in refused.items() if getattr(case, key) == name)
                    raise ConfigError(f"{name} cannot be combined with any of the others: {reason}")
        return found

    def profile(self, case: BenchCase, peers: int) -> ClusterConfig:
        """Return the cluster profile of ``case``. Raises ValidationError (pydantic) for an impossible combination."""
        cores, own = usable_cores(), self.resources
        # One process may use as many cores as the students' processes have together.
        threads = min(own.threads * peers, cores) if case.in_process else own.threads
        share = (
            float(own.threads)
            if own.address
            else min(own.threads, max(_LEAST_SHARE, cores / peers // _LEAST_SHARE * _LEAST_SHARE))
        )
        sections: dict[str, Mapping[str, Any]] = {
            "ray": {"address": own.address, "object_store_memory": self._store_bytes()},
            "students": {"cpus": share, "gpus": own.gpus, "threads": threads},
            "exchange": {"transport": case.transport, "codec": case.codec, "precision": case.precision},
            "placement": {"strategy": "STRICT_SPREAD" if own.spread else "PACK"},
        }
        profile = ClusterConfig.model_validate({"name": "bench", **sections})
        # The profile's schema demands an evaluator, but nothing is scored here.
        return profile.model_copy(update={"evaluators": profile.evaluators.model_copy(update={"count": 0})})

    def require_room(self, cases: Sequence[BenchCase]) -> None:
        """Raise ClusterError if this machine has too few devices, or too little memory, for the most students.

        A running cluster is checked later, when it has been joined.
        """
        if self.resources.address:
            return
        peers, load = max(self.peers), self.workload
        for case in cases:
            if not case.in_process:
                profile = self.profile(case, peers)
                check_room(peers, profile, [local_resources(profile)])
        received = (peers - 1) * load.dense_bytes
        student = _PROCESS_BYTES + _BYTES_PER_PARAMETER * load.num_parameters + _DENSE_BUFFERS * load.dense_bytes
        needed = peers * (student + received) + self._store_bytes()
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > available:
            raise ClusterError(
                f"no room for {peers} students of {load.num_parameters:,} parameters that exchange {load.positions} "
                f"predictions of {load.vocab:,} entries: they take about {needed / 1e9:.1f} GB together, and this "
                f"machine has {available / 1e9:.1f} GB. Use fewer --peers, or a smaller --vocab, --tokens or --width."
            )

    def _store_bytes(self) -> int:
        """Return the size of the object store, large enough that it never spills to disk (REFERENCE.md#ray)."""
        steps = ExchangeConfig().steps_ahead + _STEPS_STORED
        return max(_LEAST_STORE_BYTES, max(self.peers) * steps * self.workload.dense_bytes)


def _require_known(key: str, names: Sequence[str]) -> None:
    known = get_args(ExchangeConfig.model_fields[key].annotation)
    for name in names:
        if name not in known:
            raise ConfigError(f"no {key} is called {name!r}. {nearest(name, known)}")
