"""What sets one peer apart from the others: its seed, learning rate, dropout and model (``peers.each``)."""

from __future__ import annotations

from pydantic import ValidationError

from ray_l4.config.experiment import ExperimentConfig, PeerConfig
from ray_l4.config.model import ModelConfig
from ray_l4.errors import ConfigError
from ray_l4.methods.copying import changed
from ray_l4.methods.table import get_method

_OF_THE_SOURCE = ("name", "from_scratch", "max_length")
"""What a peer's own model does not take over from the others'; all else holds for it too where it says nothing."""
_OF_THE_TOKENIZER = ("task_tokens", "spare_task_tokens")


def num_students(experiment: ExperimentConfig) -> int:
    """Number of students: the experiment's own, or its method's. Raises ConfigError for an unknown method."""
    return experiment.peers.count or get_method(experiment.method).peers


def peer_settings(experiment: ExperimentConfig, peer: int) -> PeerConfig:
    """What ``peer`` has of its own. A teacher has nothing, unless it is the student itself as it was before."""
    each = experiment.peers.each
    own = 0 if get_method(experiment.method).taught_by_itself else peer
    return each[own] if own < len(each) else PeerConfig()


def peer_seed(experiment: ExperimentConfig, peer: int) -> int:
    """The seed of what ``peer`` draws at the start and of its dropout. The order of examples is the run seed's."""
    own = peer_settings(experiment, peer).seed
    return experiment.seed if own is None else own


def peer_experiment(experiment: ExperimentConfig, peer: int) -> ExperimentConfig:
    """What ``peer`` really learns with: the experiment with this peer's learning rate and model.

    The dropout of a pretrained model is no part of a ``ModelConfig``: ``peer_settings(...).dropout`` has it.
    Raises ConfigError if the model's own values do not go together with those of the others.
    """
    own = peer_settings(experiment, peer)
    model = _model_of(experiment.model, own, peer)
    if own.dropout is not None and model.from_scratch is not None:
        model = changed(model, from_scratch=changed(model.from_scratch, dropout=own.dropout))
    optim = experiment.optim if own.lr is None else changed(experiment.optim, lr=own.lr)
    return changed(experiment, model=model, optim=optim)


def completed(experiment: ExperimentConfig) -> list[PeerConfig]:
    """``peers.each`` with every model written out in full: what it takes over from ``model`` stands in it.

    Raises ConfigError unless there is one item for each student, or if two peers could not share a tokeniser.
    """
    each, count = experiment.peers.each, num_students(experiment)
    if each and len(each) != count:
        raise ConfigError(
            f"peers.each: {len(each)} items for {count} students; expected one for each student in order ({{}} for one "
            "with nothing of its own), or none. Change the list, or peers.count."
        )
    for peer, own in enumerate(each):
        if own.model is not None:
            _refuse_another_source(experiment.model, own.model, peer)
    models = [_model_of(experiment.model, own, peer) for peer, own in enumerate(each)]
    for peer, model in enumerate(models):
        _refuse_another_vocabulary(experiment.model, model, peer)
    return [own if own.model is None else changed(own, model=model) for own, model in zip(each, models, strict=True)]


def _model_of(common: ModelConfig, peer: PeerConfig, number: int) -> ModelConfig:
    """The peer's model; where it says nothing it is like the common one. Of what was completed it is the same again."""
    own = peer.model
    if own is None:
        return common
    values = {name: getattr(common, name) for name in type(common).model_fields if name not in _OF_THE_SOURCE}
    values |= {name: getattr(own, name) for name in own.model_fields_set}
    try:
        if own.from_scratch is not None and common.from_scratch is not None:
            values["from_scratch"] = common.from_scratch.model_dump() | own.from_scratch.model_dump(exclude_unset=True)
        complete = ModelConfig.model_validate(values)
        return ModelConfig.model_validate({name: getattr(complete, name) for name in ModelConfig.model_fields})
    except ValidationError as error:
        problems = "; ".join(str(problem["ctx"]["error"]) for problem in error.errors())
        raise ConfigError(
            f"peers.each.{number}.model: {problems} (what it does not say, it takes over from model)"
        ) from None


def _refuse_another_source(common: ModelConfig, own: ModelConfig, peer: int) -> None:
    if (own.from_scratch is None) != (common.from_scratch is None):
        kinds = {True: "a pretrained model", False: "a model from scratch"}
        raise ConfigError(
            f"peers.each.{peer}.model: peer {peer} has {kinds[own.from_scratch is None]}, the others have "
            f"{kinds[common.from_scratch is None]}; their tokenisers would differ, but peers compare predictions token "
            "by token. Give all of them pretrained models with one tokeniser, or all of them models from scratch."
        )


def _refuse_another_vocabulary(common: ModelConfig, own: ModelConfig, peer: int) -> None:
    """What can be told of the tokenisers from the configuration alone."""
    values = [(name, getattr(own, name), getattr(common, name)) for name in _OF_THE_TOKENIZER]
    if own.from_scratch is not None and common.from_scratch is not None:
        values.append(("from_scratch.vocabulary", own.from_scratch.vocabulary, common.from_scratch.vocabulary))
    for name, mine, theirs in values:
        if mine != theirs:
            raise ConfigError(
                f"peers.each.{peer}.model.{name}: peer {peer} has {mine}, the others have {theirs}; peers compare "
                "predictions token by token, so they share one tokeniser. Leave the key out here, and set "
                f"model.{name} for all."
            )
