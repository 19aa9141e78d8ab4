"""Whether a model predicts each token from earlier ones alone."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ray_l4.errors import ModelError

_LENGTH = 8
"""Tokens of the text that is tried."""


def refuse_if_not_causal(model: PreTrainedModel, name: str, where: str) -> None:
    """Raise ModelError if the logits of earlier positions depend on the last token of a short text.

    Such a model, BERT's kind, sees in training the tokens that it should predict. One whose settings say that it has an
    encoder is refused too. ``where``: the key or file that names the model, for the message.
    """
    if model.config.is_encoder_decoder:
        raise ModelError(
            f"{where}: {name!r} ({type(model).__name__}) has an encoder by its config.json (is_encoder_decoder). Give "
            "a model that only decodes, such as one of GPT-2's or Llama's kind."
        )
    was_training = model.training
    model.eval()
    embeddings = model.get_input_embeddings()
    ids_T = _text(model.config, embeddings.num_embeddings)
    embedded: list[torch.Tensor] = []  # taken on its way: not every model accepts embedded tokens as input

    def take(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # some models scale what they are given in place

    hook = embeddings.register_forward_hook(take)
    try:
        with torch.enable_grad():
            logits_TV = model(input_ids=ids_T[None].to(model.device), use_cache=False).logits[0, :-1].float()
            (gradient_1TH,) = torch.autograd.grad(logits_TV.square().sum(), embedded[:1])
    finally:
        hook.remove()
    model.train(was_training)
    # It is exactly zero for a causal model in every dtype; differences of logits would drown in bfloat16's rounding.
    if float(gradient_1TH[0, -1].abs().max()) > 0:
        raise ModelError(
            f"{where}: {name!r} ({type(model).__name__}) is not a causal language model: its predictions of a token "
            "change with the tokens after it, so in training it would see what it should predict, and its scores would "
            "mean nothing. Give a model made for generating text, such as one of GPT-2's or Llama's kind."
        )


def _text(config: PreTrainedConfig, vocabulary: int) -> torch.Tensor:
    """Return the ids (T) of a short text without padding, from which some models look away."""
    padding = {getattr(config, key, None) for key in ("pad_token_id", "pad_index")}
    words = torch.tensor([token for token in range(vocabulary) if token not in padding])
    return words[torch.randint(len(words), (_LENGTH,), generator=torch.Generator().manual_seed(0))]
