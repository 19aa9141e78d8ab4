"""How far the gradient learned from a codec's payloads is from the exact one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from ray_l4.config.traits import CODECS
from ray_l4.exchange.codecs import Codec, Payload
from ray_l4.learner.learner import Learner
from ray_l4.learner.predictions import Predictions
from ray_l4.losses.targets import Targets
from ray_l4.methods.copying import changed
from ray_l4.seeds import derive

UNCLIPPED = 1e30
"""A norm that no gradient has."""


class Learned(NamedTuple):
    """The result of a student's step."""

    gradient_P: Tensor
    """Gradient of the full objective with respect to all P parameters, flat."""
    kd: float
    """Distillation loss of the LM head."""


@dataclass(frozen=True)
class Exact:
    """The exact values that codecs are compared with, on one batch."""

    predictions: Sequence[Predictions]
    """Predictions of every peer, the student's first."""
    learned: Learned
    """The student's step from dense targets in float32."""
    labels_P: Tensor
    """Gradient without any teacher; the rest of the full gradient is that of the distillation term."""


class Difference(NamedTuple):
    """The difference between a gradient and the exact one."""

    relative_error: float
    """Norm of the difference over the norm of the exact one."""
    cosine: float


@dataclass(frozen=True)
class Comparison:
    """One codec on one batch, with a value for each seed."""

    num_bytes: int
    """Bytes that one peer publishes."""
    full: list[Difference]
    """Differences of the full objective's gradient."""
    kd: list[Difference]
    """Differences of the distillation term's gradient."""
    kd_of_mean: Difference
    """Difference of the distillation term's gradient averaged over the seeds: the error that does not average out."""
    kd_loss_ratio: list[float]
    """Distillation loss of the LM head over the exact one."""


def unclipped(learner: Learner) -> Learner:
    """Wrap the same model in a learner that does not clip gradients."""
    training = changed(learner.experiment.training, max_grad_norm=UNCLIPPED)
    experiment = changed(learner.experiment, training=training)
    return Learner(learner.peer, learner.model, learner.tokenizer, experiment, learner.method)


def exact(peers: Sequence[Learner], batch: pa.Table) -> Exact:
    """Return the peers' predictions for a batch, and the step that the first one learns from them."""
    predictions = [learner.begin_stage(0, batch).forward(0) for learner in peers]
    student, targets = peers[0], [own.targets() for own in predictions[1:]]
    return Exact(predictions, learned(student, batch, targets), learned(student, batch, []).gradient_P)


def compare(codec: Codec, student: Learner, batch: pa.Table, reference: Exact, seeds: range) -> Comparison:
    """Measure a codec on one batch of an unclipped ``student``, once for each seed."""
    steps, num_bytes = [], 0
    for seed in seeds:
        payloads = [codec.encode(own, derive(seed, "peer", peer)) for peer, own in enumerate(reference.predictions)]
        num_bytes = payloads[0].num_bytes
        steps.append(learned(student, batch, [codec.decode(payload) for payload in received(payloads)]))
    exact_kd_P = reference.learned.gradient_P - reference.labels_P
    kd = [step.gradient_P - reference.labels_P for step in steps]
    return Comparison(
        num_bytes,
        [difference(step.gradient_P, reference.learned.gradient_P) for step in steps],
        [difference(own_P, exact_kd_P) for own_P in kd],
        difference(torch.stack(kd).mean(dim=0), exact_kd_P),
        [step.kd / reference.learned.kd for step in steps],
    )


def received(payloads: Sequence[Payload]) -> Sequence[Payload]:
    """Return the payloads that the first peer receives: those of the others, or one reduced from all."""
    own, *others = payloads
    if not CODECS[own.codec].reduces:
        return others
    # As the collective link does it: the sum over all peers, minus the peer's own.
    means = {
        name: (torch.stack([payload.tensors[name] for payload in payloads]).sum(dim=0) - tensor) / len(others)
        for name, tensor in own.tensors.items()
    }
    return [Payload(own.codec, {name: mean.clamp_(min=0) for name, mean in means.items()})]


def learned(learner: Learner, batch: pa.Table, targets: Sequence[Mapping[str, Targets]]) -> Learned:
    """Learn one step on a batch, then restore the learner's weights. Dropout is the same every time."""
    weights = learner.weights()
    run = learner.begin_stage(0, batch)
    taken: list[Tensor] = []

    def take(optimizer: Any, *arguments: Any) -> None:
        taken.append(torch.cat([p.grad.flatten() for p in learner.model.parameters() if p.grad is not None]))

    run.optimizer.register_step_pre_hook(take)
    run.forward(0, publish=False)
    figures = run.backward(0, targets)
    learner.load(weights)
    return Learned(taken[0], figures["kd_lm"])


def difference(gradient_P: Tensor, exact_P: Tensor) -> Difference:
    """Compare two flat gradients, summed in float64, since there are millions of terms."""
    gradient_P, exact_P = gradient_P.double(), exact_P.double()
    error = (gradient_P - exact_P).norm() / exact_P.norm()
    cosine = functional.cosine_similarity(gradient_P, exact_P, dim=0).clamp(-1, 1)
    return Difference(float(error), float(cosine))
