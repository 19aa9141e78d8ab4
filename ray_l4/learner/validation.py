"""Validation: the loss of a model on the answers of examples that it does not learn from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from ray_l4.losses.nll import at_least_float32
from ray_l4.text.batches import build_batch
from ray_l4.text.chunks import in_chunks
from ray_l4.text.sampler import Sampler
from ray_l4.text.tokens import sequence_lengths

if TYPE_CHECKING:
    import pyarrow as pa

    from ray_l4.learner.peer_model import PeerModel


@torch.no_grad()
def validation_loss(learner: PeerModel, tokens: pa.Table, stage: int = 0) -> float:
    """Return the mean cross-entropy of the answers (EOS included) of ``tokens``, in nats per token, without dropout.

    As many examples as a rank has in a step run at a time, so validation takes less memory than a step. Every rank of a
    student computes the whole mean, so none waits for the others' sums. ``stage``: that with whose batch size it runs.
    """
    training = learner.experiment.at_stage(stage).training
    model = learner.model
    batches = Sampler(
        sequence_lengths(tokens), learner.experiment.seed, 0, 1, training.batch_size, training.batch_budget
    )
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for step in range(batches.num_steps):
        rows = batches.indices(step)
        for part in in_chunks(len(rows), learner.micro_batch or -(-len(rows) // learner.sharding.size)):
            batch = build_batch(tokens, rows[part.start : part.stop], ("qa",), learner.tokenizer, 1.0)
            batch = batch.to(learner.device)
            targets_N = batch.heads["qa"].targets_N
            logits_NV = at_least_float32(learner.logits(batch)["qa"])
            total += float(functional.cross_entropy(logits_NV, targets_N, reduction="sum"))
            count += len(targets_N)
    model.train(was_training)
    return total / count
