"""Settings of single peers: seed, learning rate, dropout and model (``peers.each``)."""

from __future__ import annotations

from pydantic import ValidationError

from ray_l4.config.experiment import ExperimentConfig, PeerConfig
from ray_l4.config.model import ModelConfig
from ray_l4.config.text import counted
from ray_l4.errors import ConfigError
from ray_l4.methods.copying import changed
from ray_l4.methods.table import get_method
from ray_l4.seeds import derive

_NOT_INHERITED = ("name", "from_scratch", "max_length")
"""Keys of ``model`` that a peer's own model does not inherit; it inherits all others that it does not set."""
_TOKENIZER_KEYS = ("task_tokens", "spare_task_tokens")
"""Keys of ``model`` that must be the same for all peers, because they change the tokeniser."""


def num_students(experiment: ExperimentConfig) -> int:
    """Return the experiment's number of students, by default its method's. Raises ConfigError for an unknown method."""
    return experiment.peers.count or get_method(experiment.method).peers


def num_teachers(experiment: ExperimentConfig) -> int:
    """Return the number of frozen peers that are students of a finished run (``teachers.students``)."""
    return len(experiment.teachers.students) if get_method(experiment.method).has_peer_teachers else 0


def scores_together(experiment: ExperimentConfig) -> bool:
    """Return whether the students of the experiment are scored together too. A single one is not."""
    return experiment.evaluation.together and num_students(experiment) > 1


def peer_settings(experiment: ExperimentConfig, peer: int) -> PeerConfig:
    """Return the peer's own settings.

    A frozen teacher has none, unless it is an earlier state of the student, or a student of a finished run.
    """
    each = experiment.peers.each
    own = 0 if get_method(experiment.method).taught_by_itself else peer
    return each[own] if own < len(each) else PeerConfig()


def peer_seed(experiment: ExperimentConfig, peer: int) -> int:
    """Return the seed of the peer's initialisation and dropout. The order of the examples follows the run's seed."""
    own = peer_settings(experiment, peer).seed
    return experiment.seed if own is None else own


def init_seed(experiment: ExperimentConfig, peer: int) -> int:
    """Return the seed of the peer's initial random weights, of new tokens or of the whole model (``peers.init``)."""
    names = ("init",) if experiment.peers.init == "shared" else ("init", peer)
    return derive(peer_seed(experiment, peer), *names)


def peer_experiment(experiment: ExperimentConfig, peer: int) -> ExperimentConfig:
    """Return the experiment with this peer's learning rate and model.

    The dropout of a pretrained model is not part of ``ModelConfig``; it is in ``peer_settings(...).dropout``.
    Raises ConfigError if the peer's own values of the model are inconsistent with the inherited ones.
    """
    own = peer_settings(experiment, peer)
    model = _model_of(experiment.model, own, peer)
    if own.dropout is not None and model.from_scratch is not None:
        model = changed(model, from_scratch=changed(model.from_scratch, dropout=own.dropout))
    optim = experiment.optim if own.lr is None else changed(experiment.optim, lr=own.lr)
    return changed(experiment, model=model, optim=optim)


def completed_peers(experiment: ExperimentConfig) -> list[PeerConfig]:
    """Return ``peers.each`` with every model complete, including what it inherits from ``model``.

    Raises ConfigError if there is not one item per student, or if two peers cannot share a tokeniser.
    """
    each, count = experiment.peers.each, num_students(experiment) + num_teachers(experiment)
    if each and len(each) != count:
        raise ConfigError(
            f"peers.each: {counted(len(each), 'item')} for {counted(count, 'student')}; expected one per student in "
            "order ({} for one without settings of its own), or an empty list. Change the list, or peers.count."
        )
    for peer, own in enumerate(each):
        if own.model is not None:
            _refuse_another_source(experiment.model, own.model, peer)
    models = [_model_of(experiment.model, own, peer) for peer, own in enumerate(each)]
    for peer, model in enumerate(models):
        _refuse_another_vocabulary(experiment.model, model, peer)
    return [own if own.model is None else changed(own, model=model) for own, model in zip(each, models, strict=True)]


def _model_of(common: ModelConfig, peer: PeerConfig, number: int) -> ModelConfig:
    """Return the peer's complete model, which inherits unset keys from ``common``. Idempotent."""
    own = peer.model
    if own is None:
        return common
    values = {name: getattr(common, name) for name in type(common).model_fields if name not in _NOT_INHERITED}
    values |= {name: getattr(own, name) for name in own.model_fields_set}
    try:
        if own.from_scratch is not None and common.from_scratch is not None:
            values["from_scratch"] = common.from_scratch.model_dump() | own.from_scratch.model_dump(exclude_unset=True)
        complete = ModelConfig.model_validate(values)
        return ModelConfig.model_validate({name: getattr(complete, name) for name in ModelConfig.model_fields})
    except ValidationError as error:
        problems = "; ".join(str(problem["ctx"]["error"]) for problem in error.errors())
        raise ConfigError(
            f"peers.each.{number}.model: {problems} (keys that it does not set are inherited from model)"
        ) from None


def _refuse_another_source(common: ModelConfig, own: ModelConfig, peer: int) -> None:
    """Raise ConfigError if only one of the two models is a pretrained one."""
    if (own.from_scratch is None) != (common.from_scratch is None):
        kinds = {True: "a pretrained model", False: "a model from scratch"}
        raise ConfigError(
            f"peers.each.{peer}.model: peer {peer} has {kinds[own.from_scratch is None]}, the others have "
            f"{kinds[common.from_scratch is None]}; their tokenisers would differ, but peers compare predictions token "
            "by token. Use pretrained models with the same tokeniser for all peers, or models from scratch for all."
        )


def _refuse_another_vocabulary(common: ModelConfig, own: ModelConfig, peer: int) -> None:
    """Raise ConfigError if the peer's tokeniser would differ, as far as the configuration alone shows."""
    values = [(name, getattr(own, name), getattr(common, name)) for name in _TOKENIZER_KEYS]
    if own.from_scratch is not None and common.from_scratch is not None:
        values.append(("from_scratch.vocabulary", own.from_scratch.vocabulary, common.from_scratch.vocabulary))
    for name, mine, theirs in values:
        if mine != theirs:
            raise ConfigError(
                f"peers.each.{peer}.model.{name}: peer {peer} has {mine}, the others have {theirs}; peers compare "
                "predictions token by token, so they must share a tokeniser. Remove the key here, and set "
                f"model.{name} for all peers."
            )


def all_models(experiment: ExperimentConfig) -> list[ModelConfig]:
    """The model that all have where they have none of their own, and that of every student and of its teachers where
    these are students of a finished run."""
    peers = num_students(experiment) + num_teachers(experiment)
    return [experiment.model, *(peer_experiment(experiment, peer).model for peer in range(peers))]
