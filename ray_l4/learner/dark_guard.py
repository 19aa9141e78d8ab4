"""DER++'s guard: every step also learns stored examples, and the logits that the model once gave them.

Source: REFERENCE.md#der.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional

from ray_l4.learner.guard_context import GuardContext
from ray_l4.learner.memory_draws import drawn_logits, drawn_rows
from ray_l4.learner.stored_logits import StoredLogits, digests
from ray_l4.losses.dark_replay import recorded_distance
from ray_l4.losses.nll import at_least_float32
from ray_l4.text.stored import KEY, stored_part

_RECORDED_TOGETHER = 8
"""Examples whose logits are recorded in one pass: their logits over the whole vocabulary are in memory."""


class DarkGuard:
    """Adds to a step's loss two terms on stored examples of earlier tasks, each on a draw of its own."""

    def __init__(self) -> None:
        self.stored = StoredLogits()

    def restrain(self, context: GuardContext, step: int) -> Tensor:
        added = torch.zeros((), device=context.device)
        if context.memory is None or not context.memory.num_rows:
            return added
        weights = context.experiment.regulariser
        # One after the other, so that only one graph is in memory. A term with weight 0 is left out.
        if weights.logits_weight:
            added = added + _learned(weights.logits_weight * self._distance(context, context.memory, step))
        if weights.labels_weight:
            added = added + _learned(weights.labels_weight * _loss_on_labels(context, context.memory, step))
        return added

    def after_stage(self, context: GuardContext) -> None:
        was_training = context.model.training
        context.model.eval()
        self.stored = self.stored.joined(_recorded(context), context.experiment.replay.capacity)
        context.model.train(was_training)

    def to_bytes(self) -> np.ndarray | None:
        return self.stored.to_bytes()

    def restore(self, data: np.ndarray, device: torch.device) -> None:
        self.stored = StoredLogits.from_bytes(data)

    def _distance(self, context: GuardContext, memory: pa.Table, step: int) -> Tensor:
        """Return the distance of the model's logits from the recorded ones on the step's first draw."""
        rows = drawn_rows(context, memory, step, "dark logits")
        ids_NK, values_NK = self.stored.of(memory, rows)
        logits_NV, _ = drawn_logits(context, memory, rows, step, "dark logits")
        return recorded_distance(logits_NV, ids_NK.to(context.device).long(), values_NK.to(context.device))


def _loss_on_labels(context: GuardContext, memory: pa.Table, step: int) -> Tensor:
    """Return the mean cross-entropy of the answers on the step's second draw."""
    rows = drawn_rows(context, memory, step, "dark labels")
    logits_NV, targets_N = drawn_logits(context, memory, rows, step, "dark labels")
    return functional.cross_entropy(at_least_float32(logits_NV), targets_N)


def _learned(loss: Tensor) -> Tensor:
    """Add the gradient of ``loss`` to those of the parameters; returns its value."""
    loss.backward()
    return loss.detach()


@torch.no_grad()
def _recorded(context: GuardContext) -> StoredLogits:
    """Run the model on those examples of the stage that the reservoir can keep, and return their largest logits."""
    experiment = context.experiment
    current = context.tokens.filter(pc.equal(context.tokens["origin"], "real"))
    # A plan simulates a second stage of a stream with one item.
    names = list(experiment.items)
    item = names[context.stage] if context.stage < len(names) else names[-1]
    part = stored_part(current, item, experiment.seed, experiment.replay.capacity)
    ids, values = [], []
    for start in range(0, part.num_rows, _RECORDED_TOGETHER):
        rows = np.arange(start, min(start + _RECORDED_TOGETHER, part.num_rows))
        logits_NV = at_least_float32(context.answer_logits(part, rows)[0])
        size = min(experiment.regulariser.stored_logits or logits_NV.shape[1], logits_NV.shape[1])
        values_NK, ids_NK = logits_NV.topk(size)
        ids.append(ids_NK.int().cpu())
        values.append(values_NK.float().cpu())
    sizes_M = pc.list_value_length(part["ids"]).to_numpy() - part["prompt_length"].to_numpy() + 1  # with EOS
    return StoredLogits(
        part[KEY].to_numpy(), digests(part), sizes_M.astype(np.int64), torch.cat(ids), torch.cat(values)
    )
