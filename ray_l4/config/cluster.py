"""The cluster profile: devices, processes, transport and timeouts. It says nothing about what is learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ray_l4.config.fields import Count, Strict
from ray_l4.config.redaction import holds_secret, redacted_address
from ray_l4.config.traits import CODECS, TRANSPORTS, CodecTraits, TransportTraits

Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]


class RayConfig(Strict):
    """Ray cluster to connect to or start."""

    address: str | None = None
    """Address of a running cluster (``auto`` or ``host:6379``). If not given, a local cluster is started."""
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    """CPUs of a local cluster. If not given, all CPUs of the machine."""
    num_gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a local cluster, at most as many as the machine has. If not given, all of them."""
    object_store_memory: Annotated[int, Field(ge=80_000_000)] | None = None
    """Size in bytes of a local cluster's object store. If not given, Ray chooses."""
    dashboard: bool = False
    """Start Ray's dashboard on the loopback address. Startup takes longer and needs 0.9 GB more memory."""


class Resources(Strict):
    """Resources reserved for one process."""

    cpus: Share = 1
    """CPUs reserved for each process."""
    gpus: Share = 0
    """GPUs reserved for each process. With a fraction, processes share a GPU."""
    threads: Count | None = 1
    """PyTorch threads of each process. If not given, as many as reserved CPUs (without Ray, PyTorch chooses). The
    last bits of the results depend on this number."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Custom Ray resources reserved for each process, by name. They restrict it to the nodes that offer them."""

    @model_validator(mode="after")
    def _check_custom_resources(self) -> Resources:
        reserved = sorted({"CPU", "GPU", "memory", "object_store_memory"} & self.resources.keys())
        if reserved:
            raise ValueError(f"resources: {reserved[0]} is a name reserved by Ray; use cpus or gpus, or another name")
        return self


class StudentResources(Resources):
    """Resources of every rank of a student, and the number of ranks of a student."""

    shards_per_student: Count = 1
    """Ranks of one student: processes, each with a device of its own. Resources are reserved for every rank."""
    sharding: Literal["data", "full"] = "data"
    """Division of a student over its ranks. ``data``: every rank holds the whole model and a slice of the batch.
    ``full``: every rank holds a slice of the batch and a slice of weights, gradients and optimiser moments (FSDP2)."""
    micro_batch: Count | None = None
    """Micro-batch size: the number of examples that a rank runs through the model at a time. If not given, its whole
    slice of the batch. A smaller number saves memory, but costs a second forward pass if the student publishes
    predictions."""


class EvaluatorResources(Resources):
    """Resources of every evaluator, and the number of evaluators."""

    count: Count = 1
    """Number of evaluators. They score checkpoints and generate replay."""
    cpus: Share = 0
    """CPUs reserved for each evaluator. With 0, evaluators share the students' cores."""


class ExchangeConfig(Strict):
    """Exchange of predictions between peers. docs/EXCHANGE.md lists the cost of each choice."""

    transport: Literal["in_process", "object_store", "collective", "cuda_ipc"] = "object_store"
    """Link between peers. ``in_process``: all peers run in this process, without Ray; the reference for the other
    links. ``object_store``: through Ray's object store. ``collective``: directly between processes with
    torch.distributed (gloo on CPUs, NCCL on GPUs). ``cuda_ipc``: peers on the GPUs of one host read each other's
    device memory."""
    codec: Literal["auto", "dense", "factored", "topk", "sampled", "mean"] = "dense"
    """Encoding of predictions. ``dense``: log-probabilities over the whole vocabulary. ``factored``: hidden states and
    the output matrix, from which the receiver computes the log-probabilities. ``auto``: the smaller of these two,
    chosen at every step. ``topk``: the largest probabilities and the remaining mass. ``sampled``: tokens drawn from
    the prediction. ``mean``: the mean of the other peers' probabilities, computed by a collective reduction (needs
    the ``collective`` transport and a complete topology)."""
    precision: Literal["float32", "float16"] = "float32"
    """Number format of a payload. float16 log-probabilities are rounded after subtracting the row maximum."""
    top_k: Count = 64
    """Number of tokens per position that ``topk`` sends."""
    samples: Count = 50
    """Number of draws per position that ``sampled`` sends."""
    steps_ahead: Annotated[int, Field(ge=1, le=64)] = 3
    """Maximum number of steps in flight: steps submitted before waiting for the oldest."""

    @property
    def codec_traits(self) -> CodecTraits:
        """Traits of the codec."""
        return CODECS[self.codec]

    @property
    def transport_traits(self) -> TransportTraits:
        """Traits of the transport."""
        return TRANSPORTS[self.transport]


class PlacementConfig(Strict):
    """Placement of actors on nodes."""

    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Ray's placement strategy for all actors that reserve resources."""


class TimeoutConfig(Strict):
    """Longest waiting times, in seconds. Every wait is bounded."""

    start: Seconds = 180
    """For the cluster, the placement group and the actors to start, and for calls between stages."""
    step: Seconds = 600
    """For one training step."""
    work: Seconds = 7200
    """For one work item of an evaluator: a few batches of a test set, or one chunk of replay."""
    control: Seconds = 60
    """For a process to show that it is alive: the coordinator, a student, an evaluator, and those of a local Ray."""
    stop: Seconds = 60
    """For a run to end after Ctrl-C or SIGTERM: the step under way, and what is then written to disk."""


class RestartConfig(Strict):
    """How often what dies is started again without any progress in between. Progress gives back all restarts."""

    most: Count = 5
    """Restarts without progress, for the coordinator and for the Ray session each. Then the run ends; its files are
    kept."""
    backoff: Annotated[float, Field(ge=0)] = 1.0
    """Seconds to wait before the second restart without progress; doubled every time, up to a minute."""


class ClusterConfig(Strict):
    """Where a run takes place: devices, processes, transport and timeouts."""

    name: str = "laptop"
    """Name of the profile, shown in logs and reports."""
    ray: RayConfig = RayConfig()
    """Ray cluster."""
    students: StudentResources = StudentResources()
    """Resources of students."""
    evaluators: EvaluatorResources = EvaluatorResources()
    """Resources of evaluators."""
    exchange: ExchangeConfig = ExchangeConfig()
    """Exchange of predictions between peers."""
    placement: PlacementConfig = PlacementConfig()
    """Placement of actors."""
    timeouts: TimeoutConfig = TimeoutConfig()
    """Longest waiting times."""
    restarts: RestartConfig = RestartConfig()
    """Restarts of what dies."""
    storage_path: str | None = None
    """Where to copy the run directory while it grows: a folder (for example on NFS) or an object store address
    (``s3://bucket/runs``, ``gs://...``). If not given, no copy is made. ``ray-l4 resume`` accepts the copy's
    address."""

    track: Literal["wandb", "mlflow"] | None = None
    """Tracker that gets the curves of TensorBoard as well: Weights & Biases or MLflow, configured by their own
    environment variables (``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, ...). If it fails, the run goes on without it."""

    @property
    def in_one_process(self) -> bool:
        """Return whether all workers are objects of one process, without Ray."""
        return self.exchange.transport_traits.in_one_process

    @property
    def forms_groups(self) -> bool:
        """Return whether ranks form process groups, between peers or within a student."""
        return self.exchange.transport_traits.process_group or self.students.shards_per_student > 1

    @model_validator(mode="after")
    def _check_student_resources(self) -> ClusterConfig:
        if self.students.cpus == 0 and self.students.gpus == 0:
            raise ValueError("students must reserve something: set students.cpus or students.gpus to a value above 0")
        return self

    @field_validator("storage_path")
    @classmethod
    def _check_storage(cls, address: str | None) -> str | None:
        if address is not None and "://" in address and holds_secret(address):
            raise ValueError(
                f"{redacted_address(address)} contains a password or a key, which cluster.yaml would keep. Give it in "
                "the environment instead (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, "
                "AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY), or in the files of the service"
            )
        return address

    @model_validator(mode="after")
    def _check_exchange(self) -> ClusterConfig:
        exchange, students = self.exchange, self.students
        if self.in_one_process and students.shards_per_student > 1:
            raise ValueError(
                f"students.shards_per_student: {students.shards_per_student} ranks need a process each, but "
                "exchange.transport: in_process runs everything in one; choose another transport"
            )
        if exchange.transport_traits.device_memory and students.gpus == 0:
            raise ValueError("exchange.transport: cuda_ipc shares GPU memory; set students.gpus to a value above 0")
        if self.forms_groups and 0 < students.gpus <= 0.5:
            raise ValueError(
                "students.gpus: NCCL does not allow two ranks on one GPU; expected more than 0.5, or "
                "exchange.transport: object_store and students.shards_per_student: 1"
            )
        if exchange.transport_traits.device_memory and self.ray.address and self.placement.strategy != "STRICT_PACK":
            raise ValueError("exchange.transport: cuda_ipc works within one host; set placement.strategy: STRICT_PACK")
        if exchange.codec_traits.reduces and not exchange.transport_traits.process_group:
            raise ValueError("exchange.codec: mean needs a collective reduction; set exchange.transport: collective")
        return self
