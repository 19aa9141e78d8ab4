"""Where to run: the cluster profile. It names devices, processes and limits of waiting, never what is learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ray_l4.config.fields import Count, Strict
from ray_l4.config.traits import CODECS, TRANSPORTS, CodecTraits, TransportTraits

Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]


class RayConfig(Strict):
    """The Ray cluster to use."""

    address: str | None = None
    """Address of a running cluster (``auto`` or ``host:6379``); a local one is started if not given."""
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    """CPUs of a local cluster; all of the machine when not given."""
    num_gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a local cluster, at most those of the machine; all of them when not given."""
    object_store_memory: Annotated[int, Field(ge=80_000_000)] | None = None
    """Bytes of a local cluster's object store; Ray's choice when not given."""
    dashboard: bool = False
    """Start Ray's dashboard on the loopback address (slower start, 0.9 GB more memory)."""


class Resources(Strict):
    """What a process is given."""

    cpus: Share = 1
    """CPUs reserved for each."""
    gpus: Share = 0
    """GPUs reserved for each; a fraction shares one."""
    threads: Count | None = 1
    """Threads of PyTorch in each; the reserved CPUs when not given (without Ray: PyTorch's choice).
    Results depend on it in the last bits."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Custom resources of the cluster reserved for each, by name: they bind it to nodes that offer them."""

    @model_validator(mode="after")
    def _only_custom_ones(self) -> Resources:
        taken = sorted({"CPU", "GPU", "memory", "object_store_memory"} & self.resources.keys())
        if taken:
            raise ValueError(f"resources: {taken[0]} is Ray's own; use cpus or gpus, or another name")
        return self


class StudentResources(Resources):
    """What every rank of a student is given, and how many ranks a student spans."""

    shards_per_student: Count = 1
    """Ranks (processes, each with its own device) that one student spans; resources are reserved for each of them."""
    sharding: Literal["data", "full"] = "data"
    """``data``: every rank holds the whole model and a slice of the batch. ``full``: it also holds only a slice of the
    weights, gradients and moments (FSDP2)."""
    micro_batch: Count | None = None
    """Examples of a rank that go through the model together; the whole slice when not given. A smaller number saves
    memory and costs a second forward pass where predictions are published."""


class EvaluatorResources(Resources):
    """What every evaluator is given, and how many there are."""

    count: Count = 1
    """Evaluators; they also generate replay."""
    cpus: Share = 0
    """CPUs reserved for each evaluator; 0 shares the students' cores."""


class ExchangeConfig(Strict):
    """How predictions travel between peers (docs/EXCHANGE.md has what each choice costs)."""

    transport: Literal["in_process", "object_store", "collective", "cuda_ipc"] = "object_store"
    """``in_process``: all peers in this process, without Ray; the reference. ``object_store``: through Ray.
    ``collective``: from process to process with torch.distributed (gloo on CPUs, nccl on GPUs). ``cuda_ipc``: peers
    on the GPUs of one host read each other's device memory."""
    codec: Literal["auto", "dense", "factored", "topk", "sampled", "mean"] = "dense"
    """What is sent. ``dense``: log-probabilities over the whole vocabulary. ``factored``: hidden states and the output
    matrix, from which they follow. ``auto``: the smaller one of these two, step by step. ``topk``: the largest
    probabilities and the remaining mass. ``sampled``: tokens drawn from the prediction. ``mean``: the mean of the
    other peers' probabilities, reduced collectively (``collective`` transport, complete topology)."""
    precision: Literal["float32", "float16"] = "float32"
    """Type on the wire; float16 log-probabilities are taken after centring on the row maximum."""
    top_k: Count = 64
    """Entries a position that ``topk`` sends."""
    samples: Count = 50
    """Draws a position that ``sampled`` sends."""
    steps_ahead: Annotated[int, Field(ge=1, le=64)] = 3
    """Steps submitted before the oldest one is waited for."""

    @property
    def codec_traits(self) -> CodecTraits:
        """What the codec implies."""
        return CODECS[self.codec]

    @property
    def transport_traits(self) -> TransportTraits:
        """What the transport implies."""
        return TRANSPORTS[self.transport]


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
    storage_path: str | None = None
    """Where the run directory is copied as it grows: a folder (NFS) or the address of an object storage
    (``s3://bucket/runs``, ``gs://...``); nowhere else when not given. ``ray-l4 resume`` takes that copy too."""

    @property
    def in_one_process(self) -> bool:
        """Whether all workers are objects of one process, without Ray."""
        return self.exchange.transport_traits.in_one_process

    @property
    def forms_groups(self) -> bool:
        """Whether ranks have to form process groups, of peers or within a student."""
        return self.exchange.transport_traits.process_group or self.students.shards_per_student > 1

    @model_validator(mode="after")
    def _students_reserve_something(self) -> ClusterConfig:
        if self.students.cpus == 0 and self.students.gpus == 0:
            raise ValueError("students must reserve something: give students.cpus or students.gpus a value above 0")
        return self

    @model_validator(mode="after")
    def _exchange_is_possible(self) -> ClusterConfig:
        exchange, students = self.exchange, self.students
        if self.in_one_process and students.shards_per_student > 1:
            raise ValueError(
                f"students.shards_per_student: {students.shards_per_student} ranks are as many processes; expected a "
                "transport other than in_process"
            )
        if exchange.transport_traits.device_memory and students.gpus == 0:
            raise ValueError("exchange.transport: cuda_ipc shares GPU memory; give students.gpus a value above 0")
        if self.forms_groups and 0 < students.gpus <= 0.5:
            raise ValueError(
                "students.gpus: nccl refuses two ranks on one GPU; expected more than 0.5, or "
                "exchange.transport: object_store and students.shards_per_student: 1"
            )
        if exchange.transport_traits.device_memory and self.ray.address and self.placement.strategy != "STRICT_PACK":
            raise ValueError("exchange.transport: cuda_ipc is for one host; it takes placement.strategy: STRICT_PACK")
        if exchange.codec_traits.reduces and not exchange.transport_traits.process_group:
            raise ValueError(
                "exchange.codec: mean is reduced by the students together; set exchange.transport: collective"
            )
        return self
