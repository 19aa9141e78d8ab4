"""The yardstick: a step of L4 as a good engineer writes it from the paper, with nothing of this project.

One process, two models, two padded passes for each (answers, and the language-model task), the logits of all positions,
PyTorch's losses, its attention (SDPA) and its fused AdamW. It is not slowed down in any way: it takes no step that a
careful reader of the paper would not take, and it leaves none out that one would think of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812, as the whole field calls it
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

_IGNORED = -100
"""Label of a position without a loss; PyTorch's cross-entropy leaves it out."""


@dataclass(frozen=True)
class TextbookExample:
    """One example: the ids of prompt and answer, how many belong to the prompt, and the task's first token."""

    ids: Sequence[int]
    prompt_length: int
    task_token: int
    current: bool
    """True for an example of the current task, which bears distillation; False for a replayed one."""


@dataclass(frozen=True)
class TextbookSettings:
    """The constants of L4's objective and optimiser."""

    pad: int
    eos: int
    answer_token: int
    answer_token_weight: float = 5.0
    lm_weight: float = 0.25
    kd_weight: float = 0.2
    temperature: float = 2.0
    lr: float = 6.25e-5
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    bfloat16: bool = False
    """Whether matrix products are computed in bfloat16 (autocast)."""


@dataclass(frozen=True)
class _Pass:
    """The input of one pass over the batch, padded to its longest sequence."""

    input_ids: Tensor
    labels: Tensor
    """What each position predicts; ``_IGNORED`` where there is no loss."""
    current: Tensor
    """Whether a position bears distillation."""


@dataclass(frozen=True)
class Gpt2Size:
    """The size of a GPT-2 from scratch."""

    vocabulary: int
    positions: int
    layers: int
    width: int
    heads: int
    dropout: float = 0.0


def gpt2(size: Gpt2Size, eos: int) -> GPT2LMHeadModel:
    """Build a GPT-2 with random weights, as Transformers has it by default."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size.vocabulary,
            n_positions=size.positions,
            n_embd=size.width,
            n_layer=size.layers,
            n_head=size.heads,
            embd_pdrop=size.dropout,
            attn_pdrop=size.dropout,
            resid_pdrop=size.dropout,
            bos_token_id=eos,
            eos_token_id=eos,
        )
    )


class TextbookL4:
    """Two students that learn from each other in one process."""

    def __init__(self, models: Sequence[PreTrainedModel], settings: TextbookSettings) -> None:
        self.models = list(models)
        self.settings = settings
        own = settings
        self.optimizers = [
            torch.optim.AdamW(_groups(model, own.weight_decay), lr=own.lr, eps=own.eps, fused=True) for model in models
        ]
        for model in self.models:
            model.train()

    def step(self, examples: Sequence[TextbookExample]) -> list[float]:
        """Learn one batch; returns the loss of each student."""
        losses = self.gradients(examples)
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        return [loss.item() for loss in losses]

    def gradients(self, examples: Sequence[TextbookExample]) -> list[Tensor]:
        """Run forward and backward passes of one batch without the update; returns the loss of each student."""
        passes = {"qa": self._answers(examples), "lm": self._language_model(examples)}
        logits = [
            {name: model(input_ids=own.input_ids).logits for name, own in passes.items()} for model in self.models
        ]
        losses = []
        for student in range(len(self.models)):
            teacher = 1 - student
            loss = torch.zeros((), device=self.models[student].device)
            for name, own in passes.items():
                weight = self.settings.lm_weight if name == "lm" else 1.0
                loss = loss + weight * self._objective(logits[student][name], logits[teacher][name].detach(), own)
            losses.append(loss)
        for loss in losses:
            loss.backward()
        return [loss.detach() for loss in losses]

    def _objective(self, logits: Tensor, teacher_logits: Tensor, own: _Pass) -> Tensor:
        """Cross-entropy on the labels, and the divergence from the teacher at positions of current examples."""
        settings = self.settings
        flat, labels = logits.flatten(0, 1), own.labels.flatten()
        weights = torch.ones(logits.shape[-1], device=logits.device)
        weights[settings.answer_token] = settings.answer_token_weight
        label_loss = F.cross_entropy(flat, labels, weight=weights, ignore_index=_IGNORED)
        if not own.current.any():
            return label_loss
        temperature = settings.temperature
        student_log_probs = F.log_softmax(logits[own.current] / temperature, dim=-1)
        teacher_probs = F.softmax(teacher_logits[own.current] / temperature, dim=-1)
        divergence = F.kl_div(student_log_probs, teacher_probs, reduction="batchmean") * temperature**2
        return label_loss + settings.kd_weight * divergence

    def _answers(self, examples: Sequence[TextbookExample]) -> _Pass:
        """Prompt and answer; the answer is predicted."""
        return self._padded(
            [
                (
                    list(own.ids),
                    [_IGNORED] * (own.prompt_length - 1) + [*own.ids[own.prompt_length :], self.settings.eos],
                    own.current,
                )
                for own in examples
            ]
        )

    def _language_model(self, examples: Sequence[TextbookExample]) -> _Pass:
        """Task token, prompt and answer; all but the first are predicted."""
        return self._padded(
            [([own.task_token, *own.ids], [*own.ids, self.settings.eos], own.current) for own in examples]
        )

    def _padded(self, rows: Sequence[tuple[list[int], list[int], bool]]) -> _Pass:
        longest = max(len(ids) for ids, _, _ in rows)
        input_ids = torch.full((len(rows), longest), self.settings.pad)
        labels = torch.full((len(rows), longest), _IGNORED)
        current = torch.zeros((len(rows), longest), dtype=torch.bool)
        for row, (ids, targets, is_current) in enumerate(rows):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(targets)] = torch.tensor(targets)
            current[row, : len(targets)] = is_current
        device = self.models[0].device
        return _Pass(input_ids.to(device), labels.to(device), (current & (labels != _IGNORED)).to(device))


def _groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
    """Weights with decay, and biases without."""
    named = list(model.named_parameters())
    return [
        {"params": [weight for name, weight in named if "bias" not in name], "weight_decay": weight_decay},
        {"params": [weight for name, weight in named if "bias" in name], "weight_decay": 0.0},
    ]
