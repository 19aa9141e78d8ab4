"""An evaluator: scores checkpoints and generates replay, each piece of work complete in itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.model import ModelConfig
from ray_l4.learner.answering import Scored, answer_training, decode_answers, generate_replay, score_answers
from ray_l4.learner.models import arithmetic, blank_model, load_bytes, pick_device, same_architecture
from ray_l4.methods import peer_experiment
from ray_l4.seeds import derive
from ray_l4.setup.setup import Setup
from ray_l4.workers.student import peak_memory_bytes, use_threads


class Evaluator:
    """Serves any checkpoint of the run; the one it holds is loaded again only when another is asked for.

    Students may have models of different sizes: its own is built anew where the next checkpoint is of another one.
    """

    def __init__(self, setup: Setup, cluster: ClusterConfig) -> None:
        self._setup = setup
        self._resources = cluster.evaluators
        self._model: PreTrainedModel | None = None
        self._description: Mapping[str, Any] = {}
        self._holds: str | None = None

    def start(self) -> None:
        """Take the device. Raises PeerError if it is not there."""
        use_threads(self._resources)
        self._device = pick_device(self._resources.gpus)

    def answer(
        self,
        checkpoint: str,
        student: int,
        description: Mapping[str, Any],
        weights: np.ndarray,
        task: str,
        batches: Sequence[Sequence[int]],
    ) -> dict[int, str]:
        """Answers of a student's checkpoint to some batches of a task's test set, by the index of the prompt."""
        setup, config = self._setup, self._setup.experiment.evaluation
        own = peer_experiment(setup.experiment, student).model
        model = self._load(checkpoint, own, description, weights)
        seed = derive(setup.experiment.seed, "evaluate", checkpoint)
        with arithmetic(own, self._device):
            return decode_answers(model, setup.tokenizer, setup.tests[task], config, seed, batches)

    def score(self, task: str, predictions: Sequence[str]) -> Scored:
        """What answers to a task's whole test set are worth."""
        return score_answers(self._setup.tests[task], predictions)

    def replay(
        self,
        checkpoint: str,
        student: int,
        description: Mapping[str, Any],
        weights: np.ndarray,
        gens: list[int],
        seeds: list[int],
    ) -> list[np.ndarray]:
        """A student's pseudo-examples as token ids, one for each task token in ``gens``."""
        config = self._setup.experiment.replay
        longest = min(config.max_length or self._setup.max_length, self._setup.max_length)
        own = peer_experiment(self._setup.experiment, student).model
        model = self._load(checkpoint, own, description, weights)
        with arithmetic(own, self._device):
            return generate_replay(model, self._setup.tokenizer, gens, seeds, longest, config)

    def answer_training(
        self, checkpoint: str, description: Mapping[str, Any], weights: np.ndarray, task: str, rows: range
    ) -> list[str]:
        """A teacher's answers to some of its task's training examples."""
        setup, config = self._setup, self._setup.experiment.teachers
        model = self._load(checkpoint, setup.experiment.model, description, weights)
        examples = setup.training[task]
        seed = derive(setup.experiment.seed, "distil", task)
        with arithmetic(setup.experiment.model, self._device):
            return answer_training(model, setup.tokenizer, examples, setup.max_length, config, seed, rows)

    def forget(self) -> None:
        """A checkpoint of the name that it holds may come with other weights."""
        self._holds = None

    def peak_memory(self) -> int:
        """Largest memory so far, in bytes."""
        return peak_memory_bytes()

    def _load(
        self, checkpoint: str, config: ModelConfig, description: Mapping[str, Any], weights: np.ndarray
    ) -> PreTrainedModel:
        if self._model is None:
            self.start()  # again, if Ray has restarted this actor
        if self._model is None or not same_architecture(description, self._description):
            self._model = self._holds = None  # the old one goes before the new one comes
            self._model = blank_model(config, self._setup.tokenizer, description).to(self._device)
            self._description = description
        if self._holds != checkpoint:
            self._holds = None  # should loading fail half-way, nothing valid is held
            load_bytes(self._model, weights)
            self._holds = checkpoint
        return self._model
