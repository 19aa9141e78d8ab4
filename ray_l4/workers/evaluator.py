"""An evaluator: answers test sets, scores answers, and generates replay. No call depends on an earlier one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.model import ModelConfig
from ray_l4.learner.answering import answer_training, decode_answers, generate_replay
from ray_l4.learner.batched_engine import BatchedEngine
from ray_l4.learner.general_text import window_losses
from ray_l4.learner.initial_model import initial_model
from ray_l4.learner.model_calls import ModelCalls
from ray_l4.learner.models import arithmetic, describe, pick_device, to_bytes
from ray_l4.methods import peer_experiment
from ray_l4.seeds import derive
from ray_l4.setup.setup import Setup
from ray_l4.text.test_sets import Scored, score_answers
from ray_l4.workers.held_models import HeldModels, Wanted
from ray_l4.workers.process import peak_memory_bytes, use_threads

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel


class Evaluator:
    """Serves any checkpoint of the run. It loads weights only if it does not hold them already.

    Students may have models of different sizes: the evaluator builds its model again if a checkpoint needs another.
    Only where students answer together does it hold several.
    """

    def __init__(self, setup: Setup, cluster: ClusterConfig) -> None:
        """Select the device. Raises PeerError if it is not available."""
        self._setup = setup
        use_threads(cluster.evaluators)
        self._device = pick_device(cluster.evaluators.gpus)
        self._models = HeldModels(setup.tokenizer, self._device)

    def __str__(self) -> str:
        return f"evaluator, with {self._models}" if str(self._models) else "evaluator"

    def ready(self) -> None:
        """Do nothing. A caller that waits for the result waits until the evaluator is built."""

    def answer(
        self,
        checkpoint: str,
        description: Mapping[str, Any],
        weights: np.ndarray,
        student: int,
        stage: int,
        task: str,
        batches: Sequence[Sequence[int]],
    ) -> dict[int, str]:
        """Answer batches of a task's test set with a student's model. Returns the answers by index of the prompt.

        ``stage``: that of the checkpoint, on which the prompts depend if examples are retrieved.
        """
        setup, config = self._setup, self._setup.experiment.evaluation
        own = peer_experiment(setup.experiment, student).model
        model = self._load(checkpoint, own, description, weights)
        seed = derive(setup.experiment.seed, "evaluate", checkpoint)
        with arithmetic(own, self._device):
            return decode_answers(model, setup.tokenizer, setup.tests_of(stage)[task], config, seed, batches)

    def answer_together(
        self,
        checkpoint: str,
        checkpoints: Sequence[str],
        students: Sequence[int],
        stage: int,
        task: str,
        batches: Sequence[Sequence[int]],
        *models: Any,
    ) -> dict[int, str]:
        """Answer batches of a task's test set from the mean of the probabilities of several students' models.

        ``checkpoint``: the name from which the seed of sampled answers follows. ``checkpoints``: those of the
        ``students``, whose descriptions and weights are in turn the ``models``. ``stage``: as for ``answer``. Returns
        the answers by index.
        """
        setup, config = self._setup, self._setup.experiment.evaluation
        settings = [peer_experiment(setup.experiment, student).model for student in students]
        given = zip(checkpoints, settings, models[::2], models[1::2], strict=True)
        first, *others = self._models.load([Wanted(*each) for each in given])
        contexts = [partial(arithmetic, own, self._device) for own in settings]
        engine = BatchedEngine(
            others=[ModelCalls.of(model, context) for model, context in zip(others, contexts[1:], strict=True)]
        )
        seed = derive(setup.experiment.seed, "evaluate", checkpoint)
        with contexts[0]():
            return decode_answers(first, setup.tokenizer, setup.tests_of(stage)[task], config, seed, batches, engine)

    def score(self, task: str, predictions: Sequence[str]) -> Scored:
        """Score the answers to the whole test set of a task."""
        return score_answers(self._setup.tests[task], predictions)

    def general(
        self, checkpoint: str, description: Mapping[str, Any], weights: np.ndarray, student: int, windows: range
    ) -> list[float]:
        """Return the losses of a student's model on these windows of the general text (``window_losses``)."""
        own = peer_experiment(self._setup.experiment, student).model
        return self._general(self._load(checkpoint, own, description, weights), own, windows)

    def general_at_start(self, checkpoint: str, student: int, windows: range) -> list[float]:
        """Do what ``general`` does for the model that a student begins the run with. ``checkpoint``: its name."""
        own = peer_experiment(self._setup.experiment, student).model
        model = self._models.find(checkpoint)
        if model is None:
            self._models.free()  # so that no more than two models are held at a time
            first = initial_model(self._setup.experiment, student, self._setup.tokenizer)
            description, weights = describe(first), to_bytes(first)
            del first
            model = self._load(checkpoint, own, description, weights)
        return self._general(model, own, windows)

    def _general(self, model: PreTrainedModel, own: ModelConfig, windows: range) -> list[float]:
        text = self._setup.general
        assert text is not None, "asked for only where the experiment names a general text"
        with arithmetic(own, self._device):
            return window_losses(model, [text.windows[number] for number in windows])

    def replay(
        self,
        checkpoint: str,
        description: Mapping[str, Any],
        weights: np.ndarray,
        student: int,
        gens: list[int],
        seeds: list[int],
        max_length: int,
    ) -> list[np.ndarray]:
        """Generate a pseudo-example for each task token in ``gens`` with a student's model. Returns their token ids.

        ``max_length``: tokens of a pseudo-example, with its task token and EOS.
        """
        config = self._setup.experiment.replay
        own = peer_experiment(self._setup.experiment, student).model
        model = self._load(checkpoint, own, description, weights)
        with arithmetic(own, self._device):
            return generate_replay(model, self._setup.tokenizer, gens, seeds, max_length, config)

    def answer_training(
        self, checkpoint: str, description: Mapping[str, Any], weights: np.ndarray, item: str, rows: range
    ) -> list[str]:
        """Answer training examples of an item of the stream (``rows``) with its teacher's model."""
        setup, config = self._setup, self._setup.experiment.teachers
        model = self._load(checkpoint, setup.experiment.model, description, weights)
        examples = setup.training[item]
        seed = derive(setup.experiment.seed, "distil", item)
        with arithmetic(setup.experiment.model, self._device):
            return answer_training(model, setup.tokenizer, examples, setup.max_length, config, seed, rows)

    def forget(self) -> None:
        """Load the next checkpoint even if it has the same name as the current one: its weights may differ."""
        self._models.forget()

    def peak_memory(self) -> int:
        """Return the peak memory of this process so far, in bytes."""
        return peak_memory_bytes()

    def _load(
        self, checkpoint: str, config: ModelConfig, description: Mapping[str, Any], weights: np.ndarray
    ) -> PreTrainedModel:
        (model,) = self._models.load([Wanted(checkpoint, config, description, weights)])
        return model
