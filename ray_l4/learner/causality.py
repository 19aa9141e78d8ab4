"""Whether a model predicts each token from earlier ones alone."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ray_l4.errors import ModelError

_LENGTH = 8
"""Tokens of the text that is tried."""
_LARGEST_CHANGE = 64
"""Largest change of earlier logits, in units of rounding errors. A causal model's do not change at all, or by one unit
where it sorts tokens by expert; those of a model that sees later tokens change by thousands."""


@torch.no_grad()
def refuse_if_not_causal(model: PreTrainedModel, name: str, where: str) -> None:
    """Raise ModelError if the logits of earlier positions move when the last token of a short text changes.

    Such a model, BERT's kind, sees in training the tokens that it should predict. ``where``: the key or file that names
    the model, for the message.
    """
    was_training = model.training
    model.eval()
    vocabulary = model.get_input_embeddings().num_embeddings
    ids_T = torch.randint(vocabulary, (_LENGTH,), generator=torch.Generator().manual_seed(0))
    changed_T = ids_T.clone()
    changed_T[-1] = (ids_T[-1] + vocabulary // 2) % vocabulary
    one_TV, other_TV = (model(input_ids=ids[None].to(model.device)).logits[0, :-1] for ids in (ids_T, changed_T))
    model.train(was_training)
    rounding = min(_LARGEST_CHANGE * torch.finfo(one_TV.dtype).eps, 0.03)
    if float((one_TV - other_TV).abs().max()) > rounding * float(one_TV.abs().max()):
        raise ModelError(
            f"{where}: {name!r} ({type(model).__name__}) is not a causal language model: its predictions of a token "
            "change with the tokens after it, so in training it would see what it should predict, and its scores would "
            "mean nothing. Give a model made for generating text, such as one of GPT-2's or Llama's kind."
        )
