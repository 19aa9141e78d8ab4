"""Where to run: the cluster profile. It names devices, processes and limits of waiting, never what is learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ray_l4.config.fields import Count, Strict

Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]


class RayConfig(Strict):
    """The Ray cluster to use."""

    address: str | None = None
    """Address of a running cluster (``auto`` or ``host:6379``); a local one is started if not given."""
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    """CPUs of a local cluster; all of the machine when not given."""
    num_gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a local cluster; all of the machine when not given."""
    object_store_memory: Annotated[int, Field(ge=80_000_000)] | None = None
    """Bytes of a local cluster's object store; Ray's choice when not given."""
    dashboard: bool = False
    """Start Ray's dashboard on the loopback address (slower start, 0.9 GB more memory)."""


class StudentResources(Strict):
    """What every student is given."""

    cpus: Share = 1
    """CPUs reserved for each student."""
    gpus: Share = 0
    """GPUs reserved for each student; a fraction shares one."""
    threads: Count | None = 1
    """Threads of PyTorch in each student; the reserved CPUs when not given (without Ray: PyTorch's choice).
    Results depend on it in the last bits."""


class EvaluatorResources(StudentResources):
    """What every evaluator is given, and how many there are."""

    count: Count = 1
    """Evaluators; they also generate replay."""
    cpus: Share = 0
    """CPUs reserved for each evaluator; 0 shares the students' cores."""
    gpus: Share = 0
    """GPUs reserved for each evaluator; a fraction shares one."""
    threads: Count | None = 1
    """Threads of PyTorch in each evaluator; as on the students when not given."""


class ExchangeConfig(Strict):
    """How predictions travel between peers."""

    transport: Literal["in_process", "object_store"] = "object_store"
    """``in_process``: all peers in this process, without Ray; the reference. ``object_store``: Ray."""
    codec: Literal["dense"] = "dense"
    """What is sent: log-probabilities over the whole vocabulary."""
    precision: Literal["float32", "float16"] = "float32"
    """Type on the wire; float16 is taken after centring on the row maximum."""
    steps_ahead: Annotated[int, Field(ge=1, le=64)] = 3
    """Steps submitted before the oldest one is waited for."""


class PlacementConfig(Strict):
    """How actors are spread over nodes."""

    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Ray's placement strategy for all actors that reserve anything."""


class TimeoutConfig(Strict):
    """Waiting is always bounded. All in seconds."""

    start: Seconds = 180
    """For the cluster, the placement and the actors to come up."""
    step: Seconds = 600
    """For one training step."""
    work: Seconds = 7200
    """For one piece of an evaluator's work: some batches of a test set, or a chunk of replay."""


class ClusterConfig(Strict):
    """Where it runs."""

    name: str = "laptop"
    """Shown in logs and reports."""
    ray: RayConfig = RayConfig()
    """The cluster."""
    students: StudentResources = StudentResources()
    """Students' share."""
    evaluators: EvaluatorResources = EvaluatorResources()
    """Evaluators' share."""
    exchange: ExchangeConfig = ExchangeConfig()
    """Predictions between peers."""
    placement: PlacementConfig = PlacementConfig()
    """Spreading over nodes."""
    timeouts: TimeoutConfig = TimeoutConfig()
    """Limits of waiting."""

    @model_validator(mode="after")
    def _students_reserve_something(self) -> ClusterConfig:
        if self.students.cpus == 0 and self.students.gpus == 0:
            raise ValueError("students must reserve something: give students.cpus or students.gpus a value above 0")
        return self
