"""What to learn: the experiment file. Where it runs is a cluster profile (``cluster.py``); neither knows the other.

A default lives here, or in ``model.py``, and nowhere else. The reasons for each one are in SPEC sections 5, 8, 10, 14
and 20.3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ray_l4.config.fields import Count, Fraction, Strict
from ray_l4.config.model import ModelConfig

Edge = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]
"""A teacher and its student."""


class Columns(Strict):
    """Names of the columns of one's own data."""

    context: str = "context"
    """What the question is about."""
    question: str = "question"
    """What is asked."""
    answer: str = "answer"
    """What the model should say; a list of strings where several answers are right."""
    id: str | None = None
    """A unique name of the example; the row number when not given."""


class TaskConfig(Strict):
    """One task of the stream. A bare name in the stream is short for ``{name: ...}``."""

    name: str
    """A built-in task (``ray-l4 data list``), or any name for one's own data."""
    train: Count | Literal["paper", "all"] = "paper"
    """Training examples: a number, the size the papers use, or all there are."""
    test: Count | Literal["paper", "all"] = "paper"
    """Test examples, likewise."""
    path: Path | None = None
    """One's own data: a folder with ``train.*`` and ``test.*`` (JSONL, CSV or Parquet), or a folder of the
    reference's ``<name>_to_squad-<split>-v2.0.json`` files. Relative to the experiment file."""
    columns: Columns = Columns()
    """Column names of one's own data."""
    metric: str | None = None
    """Score of the task (``ray-l4 data list`` shows them); a built-in task has its own."""
    question: str | None = None
    """One question for every example, when one's own data has no question column."""


class DataConfig(Strict):
    """Where the data comes from and how much damage is tolerated."""

    raw: Path | None = None
    """Folder of the raw data sets. Relative to the experiment file; ``RAY_L4_DATA``/raw when not given."""
    converted: Path | None = None
    """Folder of the references' own files, ``<task>_to_squad-<split>-v2.0.json``; a built-in task whose files are there
    is read from them. Relative to the experiment file."""
    distil: bool = False
    """Take training examples from the ``distil`` files of such folders: the same ones with the answers that the
    references' teachers decoded (REFERENCE.md#seq-kd)."""
    seed: int = 0
    """Seed of subset sampling and of the embedded grammar; independent of the run seed, so seeds share the data."""
    max_bad_fraction: Fraction = 0.01
    """Refuse a data set in which more than this share of the records is unusable."""


class TrainingConfig(Strict):
    """The loop of one stage."""

    epochs: Count = 9
    """Passes over the task's examples and the replayed ones."""
    batch_size: Count | Literal["auto"] = 4
    """Examples per step; ``auto`` is the references' cap, max(N // 1500, 4) (REFERENCE.md#batching)."""
    batch_budget: Annotated[float, Field(gt=0)] | None = None
    """Close a batch before (longest answer sequence)^1.163 x examples exceeds this (REFERENCE.md#batching); no limit if not given."""
    lm_weight: Annotated[float, Field(ge=0)] = 0.25
    """Weight of the language-model head beside the answer head (REFERENCE.md#lamol-loss)."""
    means: Literal["pooled", "separate"] = "pooled"
    """``pooled``: one token mean over current and replayed examples. ``separate``: one mean each, added (REFERENCE.md#l4-choices)."""
    answer_token_weight: Annotated[float, Field(gt=0)] = 5.0
    """Weight of the token that separates question and answer, as a target (REFERENCE.md#lamol-loss)."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Global L2 norm to which gradients are clipped."""


class OptimConfig(Strict):
    """AdamW and its schedule (REFERENCE.md#optimisation); both start anew with every task."""

    variant: Literal["reference", "torch"] = "reference"
    """``reference``: epsilon outside the bias correction, decay after the step. ``torch``: PyTorch's AdamW."""
    lr: Annotated[float, Field(gt=0)] = 6.25e-5
    """Peak learning rate."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-4
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay, not applied to biases."""
    warmup: Fraction = 0.005
    """Share of one epoch's samples over which the learning rate rises."""


class DistillationConfig(Strict):
    """How peers teach each other (REFERENCE.md#word-kd, #l4)."""

    weight: Annotated[float, Field(ge=0)] = 0.2
    """Lambda: weight of the distillation term. 0 still measures disagreement and equals ``lamol``."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Softens both distributions; the term is multiplied by its square."""
    average: Literal["token", "vocabulary"] = "token"
    """Mean over positions, or over positions and vocabulary entries as in the released code of L4 (REFERENCE.md#l4-released)."""
    direction: Literal["forward", "reverse"] = "forward"
    """``forward``: KL(teacher || student), as in the papers. ``reverse``: KL(student || teacher)."""
    examples: Literal["current", "all"] = "current"
    """Whether teachers are also followed on replayed examples."""
    schedule: Literal["simultaneous", "alternate_epochs"] = "simultaneous"
    """``simultaneous``: all students learn each step. ``alternate_epochs``: one after the other, a pass over the
    examples each, from the other students as they are then, without dropout (Algorithm 1 of L4)."""


class ReplayConfig(Strict):
    """Pseudo-examples of earlier tasks (REFERENCE.md#replay)."""

    ratio: Annotated[float, Field(ge=0)] = 0.2
    """Gamma: replayed examples as a share of the new task's training examples."""
    top_k: Count = 20
    """Sample from this many most likely tokens."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of sampling."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Longest pseudo-example in tokens; the model's limit when not given."""
    ban_task_tokens: bool = False
    """Never generate a task token inside a pseudo-example (REFERENCE.md#l4-released)."""
    generator: Literal["first", "own", "pool"] = "first"
    """Who generates: student 0 for all, each student its own, or all students in turn for one shared pool."""
    capacity: Count | None = None
    """Real examples that a method with stored replay keeps, in a reservoir over the stream; all when not given."""
    chunk: Count = 64
    """Pseudo-examples generated together: the unit of work that evaluators share."""


class TeacherConfig(Strict):
    """Teachers that are trained before the student (REFERENCE.md#word-kd, #seq-kd)."""

    run: Path | None = None
    """A finished ``single-qa-lm`` run on the same stream and model, whose checkpoints are the teachers; they are
    trained first when not given. Relative to the experiment file."""
    epochs: Count | None = None
    """Epochs of a teacher's training; as many as the student's when not given."""
    top_k: Count = 1
    """How teachers answer the training examples of the sequence-level methods. 1: greedy; 20: as published."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of their sampling."""


class RegulariserConfig(Strict):
    """Protection of weights or gradients against forgetting (REFERENCE.md#regularisers)."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    """Strength of the penalty on moving important weights (``ewc``, ``mas``)."""
    examples: Count | None = None
    """Examples of a finished task on which the weights' importance is measured; all when not given."""


class EvaluationConfig(Strict):
    """Scoring of checkpoints (REFERENCE.md#decoding, #metrics)."""

    when: Literal["epoch", "stage"] = "stage"
    """Score every epoch's checkpoint, or the last of each task."""
    limit: Count | None = None
    """Score at most this many test examples of a task."""
    top_k: Count = 1
    """1: greedy, as in the papers; 20: sampled, as in the references' code."""
    ban_task_tokens: bool = False
    """Never answer with a task token (REFERENCE.md#l4-released)."""
    max_new_tokens: Count | None = None
    """Longest answer in tokens; the longest reference of the test set when not given."""
    reserve: Annotated[int, Field(ge=1)] = 128
    """Room kept for the answer when a long context is cut (REFERENCE.md#decoding)."""
    chunk: Count = 64
    """Examples decoded together: the fixed batches of which evaluators are handed a few at a time."""


class PeerConfig(Strict):
    """What sets one peer apart from the others; what is not given is as everywhere else."""

    seed: int | None = None
    """Seed of what this peer draws at the start (weights of new tokens, or the whole model) and of its dropout."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate."""
    dropout: Fraction | None = None
    """Dropout of all layers."""
    model: ModelConfig | None = None
    """A model of another size; it must have the tokeniser that the others have."""


class PeersConfig(Strict):
    """Who learns, and from whom."""

    count: Count | None = None
    """Number of peers; the method's own (2 for ``l4``) when not given."""
    init: Literal["shared", "own"] = "shared"
    """Whether peers start from the same random weights (new token rows, or the whole model from scratch)."""
    topology: Literal["complete", "ring", "star"] | list[Edge] | Path | None = None
    """Who learns from whom: ``complete``, every peer from every other; ``ring``, each from the one before it; ``star``,
    all from peer 0 and peer 0 from all; a list of [teacher, student] pairs; or a file with one such pair a line
    (relative to the experiment file). The method's own when not given."""
    each: list[PeerConfig] = Field(default_factory=list)
    """Differences between the peers, one item for each in order; none when empty."""
    on_peer_loss: Literal["restart", "continue"] = "restart"
    """When a student's process dies. ``restart``: a new one takes its place and the stage is learned again from the
    last checkpoint, with the same result. ``continue``: the others go on without it and learn from those that are
    left."""


def _as_task(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class ExperimentConfig(Strict):
    """What to learn, by which method, from which data."""

    name: str = "run"
    """A short name; the run directory is called after it."""
    method: str = "l4"
    """A row of the method table (``ray-l4 methods``)."""
    variant: str | None = None
    """Name of the table row that this run belongs to; the method's when not given."""
    seed: int = 0
    """The run seed, from which all randomness of training and replay follows."""
    stream: Annotated[list[Annotated[TaskConfig, BeforeValidator(_as_task)]], Field(min_length=1)]
    """The tasks, in the order in which they are learned."""
    model: ModelConfig
    """The peers' model."""
    data: DataConfig = DataConfig()
    """Where the data is."""
    training: TrainingConfig = TrainingConfig()
    """The loop."""
    optim: OptimConfig = OptimConfig()
    """The optimiser."""
    distillation: DistillationConfig = DistillationConfig()
    """Peer teaching."""
    replay: ReplayConfig = ReplayConfig()
    """Pseudo-examples."""
    teachers: TeacherConfig = TeacherConfig()
    """Teachers that are trained first."""
    regulariser: RegulariserConfig = RegulariserConfig()
    """Protection of weights."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Scoring."""
    peers: PeersConfig = PeersConfig()
    """The peers."""

    @model_validator(mode="after")
    def _distinct_tasks(self) -> ExperimentConfig:
        names = [task.name for task in self.stream]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"task {twice[0]!r} stands twice in the stream; every task is learned once")
        return self
