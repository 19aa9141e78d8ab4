"""An evaluator: answers test sets, scores answers, and generates replay. No call depends on an earlier one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.model import ModelConfig
from ray_l4.learner.answering import answer_training, decode_answers, generate_replay
from ray_l4.learner.models import arithmetic, blank_model, load_bytes, pick_device, same_architecture
from ray_l4.methods import peer_experiment
from ray_l4.seeds import derive
from ray_l4.setup.setup import Setup
from ray_l4.text.test_sets import Scored, score_answers
from ray_l4.workers.process import peak_memory_bytes, use_threads

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel


class Evaluator:
    """Serves any checkpoint of the run. It loads weights only if it does not hold them already.

    Students may have models of different sizes: the evaluator builds its model again if a checkpoint needs another.
    """

    def __init__(self, setup: Setup, cluster: ClusterConfig) -> None:
        """Select the device. Raises PeerError if it is not available."""
        self._setup = setup
        use_threads(cluster.evaluators)
        self._device = pick_device(cluster.evaluators.gpus)
        self._model: PreTrainedModel | None = None
        self._description: Mapping[str, Any] = {}
        self._checkpoint: str | None = None

    def __str__(self) -> str:
        return "evaluator" if self._checkpoint is None else f"evaluator, with {self._checkpoint}"

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

    def score(self, task: str, predictions: Sequence[str]) -> Scored:
        """Score the answers to the whole test set of a task."""
        return score_answers(self._setup.tests[task], predictions)

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
        self._checkpoint = None

    def peak_memory(self) -> int:
        """Return the peak memory of this process so far, in bytes."""
        return peak_memory_bytes()

    def _load(
        self, checkpoint: str, config: ModelConfig, description: Mapping[str, Any], weights: np.ndarray
    ) -> PreTrainedModel:
        if self._model is None or not same_architecture(description, self._description):
            self._model = self._checkpoint = None  # the old model is freed before the new one is built
            self._model = blank_model(config, self._setup.tokenizer, description).to(self._device)
            self._description = description
        if self._checkpoint != checkpoint:
            self._checkpoint = None  # if loading fails half-way, no valid checkpoint is held
            load_bytes(self._model, weights, seed=0)  # rows of tokens that came later are not used
            self._checkpoint = checkpoint
        return self._model
