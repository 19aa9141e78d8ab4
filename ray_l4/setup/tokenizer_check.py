"""Checks of tokenisers at the start: peers compare token by token, texts come back, what is generated has room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.model import ModelConfig
from ray_l4.errors import ConfigError, ModelError
from ray_l4.learner.model_config import pretrained_config
from ray_l4.methods import all_models
from ray_l4.text.base_tokenizer import load_base
from ray_l4.text.round_trip import what_is_lost
from ray_l4.text.shared_tokenizer import difference
from ray_l4.text.tokenizer import TaskTokenizer

_PROBES = 32
"""Training examples of each task on which tokenisers are tried."""


def refuse_other_tokenizers(experiment: ExperimentConfig, training: Mapping[str, pa.Table]) -> None:
    """Raise ConfigError, with the peers and what differs, unless all pretrained models share tokens and their order.

    Models from scratch share one tokeniser by construction (``methods.peers`` sees to that).
    """
    common, *own = all_models(experiment)
    if common.name is None:
        return
    for peer, model in enumerate(own):
        if model.name is None or model.name == common.name:
            continue
        first, second = (load_base(str(each.name), each.trust_custom_code) for each in (common, model))
        found = difference(first, second, list(_probes(training))) or _rows(common, model)
        if found is not None:
            others = [str(other) for other, theirs in enumerate(own) if theirs.name == common.name]
            who = f"peer {', '.join(others)}" if others else "model.name"
            raise ConfigError(
                f"peers.each.{peer}.model.name: peer {peer} ({model.name}) cannot learn with {who} ({common.name}): "
                f"{found}. Peers compare predictions token by token; give peer {peer} a model with the same tokeniser."
            )


def refuse_lossy_tokenizer(
    experiment: ExperimentConfig, tokenizer: TaskTokenizer, training: Mapping[str, pa.Table]
) -> None:
    """Raise ModelError, with what is lost, if the tokeniser does not give back the first texts of a task."""
    for task, table in training.items():
        rows = table.slice(0, _PROBES).select(["context", "question", "answer"]).to_pylist()
        lost = what_is_lost(tokenizer, [text for row in rows for text in row.values()])
        if lost is not None:
            raise ModelError(
                f"model.name: the tokeniser of {experiment.model.name!r} ({type(tokenizer.hf).__name__}) does not give "
                f"back the texts of task {task}: {lost}. Probably its class does not fit its tokenizer.json: set "
                'tokenizer_class to "PreTrainedTokenizerFast", which reads that file as it is, in its '
                "tokenizer_config.json. Or use a model whose tokeniser knows these characters."
            )


def refuse_too_short(length: int, tokenizer: TaskTokenizer, what: str) -> None:
    """Raise ConfigError if a generated example of ``length`` tokens has no room for one. ``what``: names the length."""
    if length < tokenizer.shortest_generated:
        raise ConfigError(
            f"{what}: {length} tokens leave no room for a generated example, which begins with "
            f"{1 + len(tokenizer.lm_start)} tokens that are given (the task token and the beginning of the chat "
            f"template). Expected {tokenizer.shortest_generated} at the least, and room for a whole conversation."
        )


def _rows(common: ModelConfig, model: ModelConfig) -> str | None:
    """Describe the difference in the number of outputs, which may exceed the tokeniser's tokens; None if equal."""
    mine, theirs = (
        int(pretrained_config(str(each.name), each.trust_custom_code).get_text_config().vocab_size)
        for each in (common, model)
    )
    return None if mine == theirs else f"the one predicts {mine} tokens (vocab_size) and the other {theirs}"


def _probes(training: Mapping[str, pa.Table]) -> Iterator[str]:
    for table in training.values():
        for row in table.slice(0, _PROBES).to_pylist():
            yield f" {row['context']} {row['question']} {row['answer']}"
