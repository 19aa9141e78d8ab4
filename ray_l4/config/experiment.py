"""The experiment file: the tasks to learn, the method and its settings.

Where a run takes place is set by a cluster profile (``cluster.py``); neither refers to the other. All defaults are set
here, in ``stream.py`` and in ``model.py``. REFERENCE.md#lamol-loss, #replay, #optimisation, #decoding, #l4-choices give
their sources.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ray_l4.config.fields import Count, Fraction, Strict
from ray_l4.config.model import ModelConfig
from ray_l4.config.stream import StageSettings, TaskConfig, completed
from ray_l4.config.stream_names import distinct, item_names
from ray_l4.config.text import same_name

Edge = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]
"""A [teacher, student] pair of peer numbers."""

FEWEST_GENERAL = 100
"""Fewest tokens of a general text (``evaluation.general``): the perplexity on fewer is chance."""

OF_GENERAL_TEXT = ("evaluation.general", "evaluation.general_tokens")
"""Settings of the general text: every record says of which text it is."""

MEASURED_LATER = (*OF_GENERAL_TEXT, "evaluation.together")
"""Settings that a finished run may get or change (``ray-l4 rescore``): they add figures, and change none."""

DECIDED_LATER = {"distillation.batches": "auto"}
"""Settings whose value is decided when a run begins, by its model, each with what stands for that."""

WITHOUT_EFFECT = (
    "name",
    "data.raw",
    "data.converted",
    "stream.*.path",  # the data fingerprint checks the contents of these folders
    "model.gradient_checkpointing",
    "checkpoint.*",
    "live.*",
    *MEASURED_LATER,
)
"""Settings, as patterns, that change no number of a run."""


class DataConfig(Strict):
    """Sources of the data, and the share of unusable records to tolerate."""

    raw: Path | None = None
    """Folder of the raw data sets. Relative to the experiment file. If not given, ``$RAY_L4_DATA/raw``."""
    converted: Path | None = None
    """Folder of data sets as the reference implementations convert them (``<task>_to_squad-<split>-v2.0.json``). A
    built-in task is read from this folder if it holds the task's files. Relative to the experiment file."""
    distil: bool = False
    """Read training examples from the ``distil`` files of such a folder: the same examples with the answers that the
    reference implementations' teachers decoded (REFERENCE.md#seq-kd)."""
    seed: int = 0
    """Seed of subset sampling and of the embedded tasks. Independent of the run seed, so all seeds share the data."""
    max_bad_fraction: Fraction = 0.01
    """Largest tolerated share of unusable records. A data set with more of them is refused."""


class TrainingConfig(Strict):
    """Training within one stage."""

    epochs: Count = 9
    """Passes over the current and the replayed examples."""
    batch_size: Count | Literal["auto"] = 4
    """Examples per step. ``auto``: max(N // 1500, 4), as in the reference implementations (REFERENCE.md#batching)."""
    batch_budget: Annotated[float, Field(gt=0)] | None = None
    """Upper limit of (longest answer sequence)^1.163 x (number of examples) of a batch (REFERENCE.md#batching). If not
    given, no limit."""
    lm_weight: Annotated[float, Field(ge=0)] = 0.25
    """Weight of the language-model loss relative to the answer loss (REFERENCE.md#lamol-loss)."""
    means: Literal["pooled", "separate"] = "pooled"
    """``pooled``: one mean over the tokens of current and replayed examples. ``separate``: one mean for each of the
    two, added (REFERENCE.md#l4-choices)."""
    answer_token_weight: Annotated[float, Field(gt=0)] = 5.0
    """Weight of the answer token (between question and answer) as a target (REFERENCE.md#lamol-loss)."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Global L2 norm at which gradients are clipped."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What to do with a step whose loss or gradient is not finite. ``stop``: end the run, and keep the batch and the
    weights for ``ray-l4 debug-batch``. ``skip``: leave the student's update out, up to ``most_skipped`` times."""
    most_skipped: Count = 10
    """With ``non_finite: skip``: steps that each student may skip in a stage; at the next one the run stops."""


class OptimConfig(Strict):
    """AdamW and its learning-rate schedule (REFERENCE.md#optimisation). Both restart with every task."""

    variant: Literal["reference", "torch"] = "reference"
    """``reference``: epsilon outside the bias correction, weight decay after the step. ``torch``: PyTorch's AdamW."""
    lr: Annotated[float, Field(gt=0)] = 6.25e-5
    """Peak learning rate."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay rate of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay rate of the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-4
    """Added to the square root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay; not applied to biases."""
    warmup: Fraction = 0.005
    """Share of one epoch's examples over which the learning rate rises to its peak."""


class DistillationConfig(Strict):
    """Distillation between peers (REFERENCE.md#word-kd, #l4)."""

    weight: Annotated[float, Field(ge=0)] = 0.2
    """Weight of the distillation loss (lambda). With 0, students learn as with ``lamol``, but their disagreement is
    still measured."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Temperature of both distributions. The loss is multiplied by its square."""
    average: Literal["token", "vocabulary"] = "token"
    """``token``: mean over positions. ``vocabulary``: mean over positions and vocabulary entries, as in L4's released
    code (REFERENCE.md#l4-released)."""
    direction: Literal["forward", "reverse"] | Annotated[float, Field(gt=0, lt=1)] = "forward"
    """``forward``: KL(teacher || student), as in the papers. ``reverse``: KL(student || teacher). A number between 0
    and 1: the generalised Jensen-Shannon divergence with this beta (REFERENCE.md#gkd)."""
    examples: Literal["current", "all"] = "current"
    """Examples with a distillation loss. ``current``: those of the current task. ``all``: replayed ones too."""
    schedule: Literal["simultaneous", "alternate_epochs"] = "simultaneous"
    """``simultaneous``: all students learn at every step. ``alternate_epochs``: students take turns of one epoch each,
    while the others only predict, without dropout (L4, Algorithm 1)."""
    batches: Literal["auto", "shared", "own"] = "auto"
    """Batches of students that learn at the same time. ``shared``: all learn the same one, and teach with the
    predictions of their own learning. ``own``: each has an order of its own, and its teachers predict its batch in
    addition, without dropout (codistillation): about a third more time. ``auto``: ``own`` if students that teach each
    other would otherwise stay equal, because they begin with the same weights and have no dropout; else ``shared``."""
    on_policy: Fraction = 0.0
    """Share of the steps in which each student answers the current questions itself, and learns from its teachers'
    predictions of these answers in place of the given ones (REFERENCE.md#on-policy). Labels are learned as always."""

    @property
    def asks_teachers(self) -> bool:
        """Whether the teachers of a student are asked to predict its batch, even if they learn at the same time."""
        return self.schedule == "simultaneous" and (self.batches == "own" or self.on_policy > 0)


class ReplayConfig(Strict):
    """Replayed examples of earlier tasks (REFERENCE.md#replay)."""

    ratio: Annotated[float, Field(ge=0)] = 0.2
    """Number of replayed examples as a share of the new task's training examples (gamma)."""
    top_k: Count = 20
    """Pseudo-examples are sampled from this many most likely tokens."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Maximum length of a pseudo-example in tokens. If not given, that of the longest training sequence so far."""
    ban_task_tokens: bool = False
    """Forbid task tokens inside a pseudo-example (REFERENCE.md#l4-released)."""
    generator: Literal["first", "own", "pool"] = "first"
    """Students that generate. ``first``: student 0, for all. ``own``: each for itself. ``pool``: all take turns."""
    capacity: Count | None = None
    """Size of the reservoir of real examples, for methods with stored replay. If not given, all examples are kept."""
    chunk: Count = 64
    """Number of pseudo-examples generated together, as one work item of an evaluator."""


class MemoryConfig(Strict):
    """Stored training examples that a model is shown beside a question (REFERENCE.md#retrieval)."""

    retrieve: Annotated[int, Field(ge=0)] = 0
    """Number of training examples, of the items learned so far, that are shown before each question, in training and in
    answering: those most similar to it by BM25. 0: none (docs/METHODS.md#retrieval)."""


class TeacherConfig(Strict):
    """Task teachers, trained before the student (REFERENCE.md#word-kd, #seq-kd)."""

    run: Path | None = None
    """Directory of a finished ``single-qa-lm`` run on the same stream and model, whose checkpoints are the teachers.
    If not given, they are trained first. For ``fuse``, the finished run whose students teach. Relative to the
    experiment file."""
    students: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    """For ``fuse``: the students of ``run`` that teach, in order; the first one's weights are those that the new
    student begins with. ``ray-l4 fuse`` sets the key."""
    epochs: Count | None = None
    """Epochs of a teacher's training. If not given, ``training.epochs``."""
    top_k: Count = 1
    """Teachers of sequence-level methods sample from this many most likely tokens. 1: greedy; 20: as published."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature of the teachers' answers."""


class RegulariserConfig(Strict):
    """Regularisation of weights or gradients against forgetting (REFERENCE.md#regularisers)."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the penalty on changes of important weights (``ewc``, ``mas``), or on the overlap of subspaces
    (``olora``, 0.5)."""
    examples: Count | None = None
    """Examples of a finished task used to measure the importance of weights. If not given, all of them."""
    logits_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the distance from the logits that were recorded with stored examples (``derpp``, alpha)."""
    labels_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the loss on the labels of stored examples (``derpp``, beta)."""
    stored_logits: Count | None = 64
    """Number of logits recorded at each answer token of a stored example, the largest ones (``derpp``). null: all, 4
    bytes for every entry of the vocabulary."""


class EvaluationConfig(Strict):
    """Decoding and scoring of checkpoints (REFERENCE.md#decoding, #metrics), and validation of epochs."""

    when: Literal["epoch", "stage"] = "stage"
    """``epoch``: score the checkpoint of every epoch. ``stage``: only the last of each stage."""
    limit: Count | None = None
    """Maximum number of test examples to score per task. If not given, all of them."""
    top_k: Count = 1
    """Answers are sampled from this many most likely tokens. 1: greedy, as in the papers; 20: as in their code."""
    ban_task_tokens: bool = False
    """Forbid task tokens in answers (REFERENCE.md#l4-released)."""
    together: bool = False
    """Also score all students together, as one more row beside theirs: every token of an answer is chosen from the mean
    of their probabilities (docs/PEERS.md#peers-together). No effect with a single student."""
    max_new_tokens: Count | None = None
    """Maximum length of an answer in tokens. If not given, that of the longest reference in the test set."""
    reserve: Annotated[int, Field(ge=1)] = 128
    """Number of tokens kept free for the answer when a long context is cut (REFERENCE.md#decoding). With less than the
    longest answer needs, each answer is as long as the room that its own prompt leaves."""
    chunk: Count = 64
    """Number of test examples decoded together. A work item of an evaluator is a few such batches."""
    validation: Annotated[float, Field(gt=0, lt=1)] | Literal["dev"] | Path | None = None
    """Validation examples, by whose loss the best epoch of every stage is chosen. A number: this share of each task's
    training examples is held out. ``dev``: the tasks' own dev splits. A path (relative to the experiment file): a
    folder with a folder ``TASK/`` for each task, in which ``dev.*`` is; for a stream of one task also the folder of its
    ``dev.*``, or a file. If not given, the last epoch of a stage counts (docs/METHODS.md#validation)."""
    patience: Count | None = None
    """With ``validation``: a stage ends after this many epochs in a row without a lower validation loss. If not given,
    all epochs are trained; the best one counts either way."""
    general: Path | None = None
    """File of general text (relative to the experiment file), on which the perplexity of the students' models is
    measured before the first stage and of every checkpoint that is scored: ``.txt``, or a table ``.csv``, ``.tsv``,
    ``.jsonl`` or ``.parquet`` with a column ``text`` or ``article``. It changes nothing that is learned
    (docs/METHODS.md#general-text)."""
    general_tokens: Annotated[int, Field(ge=FEWEST_GENERAL)] = 8192
    """With ``general``: tokens of the text that are used at most, from its beginning."""

    @model_validator(mode="after")
    def _check_patience(self) -> EvaluationConfig:
        if self.patience is not None and self.validation is None:
            raise ValueError("patience counts epochs without a lower validation loss; set validation too, such as 0.1")
        return self


class CheckpointConfig(Strict):
    """Checkpoints on disk."""

    keep: Count | Literal["last", "all"] = "all"
    """Checkpoints of each student that stay on disk. ``all``: every one that was written. A number: as many of the
    newest; ``last``: 1. More stay only while they are needed: to be scored, to resume, or as the result of a model that
    is trained on its task alone (docs/METHODS.md#checkpoints)."""

    every_steps: Count | None = None
    """Steps after which the state of a stage under way is written, so that a run goes on from there after a failure. If
    not given, only ``every_minutes`` counts."""
    every_minutes: Annotated[float, Field(gt=0)] | None = 5
    """Minutes of training after which such a state is written. null: only ``every_steps`` counts."""
    states: Count = 2
    """Number of the newest states that stay on disk until their stage has finished. A state takes three times the space
    of the trainable weights in float32, for each student."""

    @property
    def newest(self) -> int | None:
        """How many of the newest checkpoints of a student stay; None for all."""
        return {"last": 1, "all": None}[self.keep] if isinstance(self.keep, str) else self.keep


class LiveConfig(Strict):
    """A service that learns while it answers (``ray-l4 live``, docs/LIVE.md)."""

    min_examples: Count = 20
    """Examples of a task in the inbox from which on a stage learns them; of a new task, two are enough."""
    max_forgetting: Annotated[float, Field(ge=0)] = 5.0
    """Percentage points by which the score of an earlier task may fall for a stage to be promoted, that is, served."""
    settings: StageSettings = StageSettings()
    """Settings of the stages that the service begins, where they differ from those of the experiment."""


class PeerConfig(Strict):
    """Settings of one peer that differ from the common ones. Keys that are not given keep the common value."""

    seed: int | None = None
    """Seed of this peer's initial random weights (of new tokens, or of the whole model) and of its dropout."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate."""
    dropout: Fraction | None = None
    """Dropout rate of all layers."""
    model: ModelConfig | None = None
    """Another model. It must use the same tokeniser as the others."""


class PeersConfig(Strict):
    """Peers, and which peer learns from which."""

    count: Annotated[Count, Field(le=1024)] | None = None
    """Number of peers. If not given, the method's default (2 for ``l4``)."""
    init: Literal["shared", "own"] = "shared"
    """Random initial weights, of new tokens or of the whole model: ``shared`` by all peers, or each peer's ``own``."""
    topology: Literal["complete", "ring", "star"] | list[Edge] | Path | None = None
    """Which peer learns from which. ``complete``: every peer from every other. ``ring``: each from the one before it.
    ``star``: all from peer 0, and peer 0 from all. Or a list of [teacher, student] pairs, or a file with one pair per
    line (relative to the experiment file). If not given, the method's default."""
    subset: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the current examples that each student learns: a random subset of its own, so that each can teach
    what others have not seen. Below 1, ``distillation.batches`` must be ``own``, or students learn in turn."""
    each: list[PeerConfig] = Field(default_factory=list)
    """Settings of single peers: one item per peer, in order. If empty, all peers have the same settings."""
    on_peer_loss: Literal["restart", "continue"] = "restart"
    """Reaction to the loss of a student. ``restart``: replace it and go on from the newest state, with the same
    result. ``continue``: go on without it; the other students learn from the teachers that remain."""


def _as_task(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class ExperimentConfig(Strict):
    """The tasks to learn, the method, and its settings."""

    name: str = "run"
    """Short name of the experiment. The run directory is named after it."""
    method: str = "l4"
    """Name of a method (``ray-l4 methods`` lists them)."""
    variant: str | None = None
    """Label of this run in tables. If not given, the name of the method."""
    seed: int = 0
    """The run seed, from which all random numbers of training and replay are derived."""
    stream: Annotated[list[Annotated[TaskConfig, BeforeValidator(_as_task)]], Field(min_length=1)]
    """Tasks, in the order in which they are learned. A task may come back later, with other examples."""
    model: ModelConfig
    """Language model of the peers."""
    data: DataConfig = DataConfig()
    """Sources of the data."""
    training: TrainingConfig = TrainingConfig()
    """Training loop."""
    optim: OptimConfig = OptimConfig()
    """Optimiser and learning rate."""
    distillation: DistillationConfig = DistillationConfig()
    """Distillation between peers."""
    replay: ReplayConfig = ReplayConfig()
    """Replayed examples of earlier tasks."""
    memory: MemoryConfig = MemoryConfig()
    """Stored training examples that a model is shown beside a question."""
    teachers: TeacherConfig = TeacherConfig()
    """Task teachers, trained before the student."""
    regulariser: RegulariserConfig = RegulariserConfig()
    """Regularisation against forgetting."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Decoding and scoring of checkpoints."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Which checkpoints stay on disk."""
    peers: PeersConfig = PeersConfig()
    """Peers and their topology."""
    live: LiveConfig = LiveConfig()
    """A service that learns while it answers."""

    @model_validator(mode="after")
    def _check_names(self) -> ExperimentConfig:
        alike: dict[str, str] = {}
        for item in self.stream:
            known = alike.setdefault(same_name(item.name), item.name)
            if known != item.name:
                raise ValueError(
                    f"the tasks {known!r} and {item.name!r} of the stream look alike; write a task that comes back in "
                    "the same way, and give others different names"
                )
        names = item_names([item.name for item in self.stream])
        taken = next((name for name in names if names.count(name) > 1), None)
        if taken is not None:
            raise ValueError(
                f"task {taken!r} has the name of the stage of a task that comes back; give it another name"
            )
        return self

    @model_validator(mode="after")
    def _check_metrics(self) -> ExperimentConfig:
        for item in self.stream:
            first = self.of_tasks[item.name]
            if item.metric not in (None, first.metric):
                raise ValueError(
                    f"task {item.name!r} comes back with another metric ({item.metric}), but its scores have to be "
                    "comparable; leave the metric out where the task comes back"
                )
        return self

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, each once, in the order in which they first come."""
        return distinct([item.name for item in self.stream])

    @property
    def of_tasks(self) -> dict[str, TaskConfig]:
        """Task -> its first item in the stream, whose test set and metric are those of the task."""
        return {item.name: item for item in reversed(self.stream)}

    @property
    def items(self) -> dict[str, TaskConfig]:
        """The items of the stream by their names (``item_names``). One of a task that comes back has the task's metric,
        and, as far as it has none of its own, its question and columns."""
        first = self.of_tasks
        names = item_names([item.name for item in self.stream])
        return {name: completed(item, first[item.name]) for name, item in zip(names, self.stream, strict=True)}

    def at_stage(self, stage: int) -> ExperimentConfig:
        """Return the experiment with the settings of a stage (from 0) where they differ from the common ones."""
        own = self.stream[stage].settings if stage < len(self.stream) else StageSettings()
        changes = {name: getattr(own, name).model_dump(exclude_none=True) for name in StageSettings.model_fields}
        update = {name: getattr(self, name).model_copy(update=values) for name, values in changes.items() if values}
        return self.model_copy(update=update) if update else self

    def epochs_of(self, stage: int) -> int:
        """Return the number of epochs of a stage (from 0)."""
        return self.at_stage(stage).training.epochs
