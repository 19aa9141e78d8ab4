"""A whole run as the textbook has it: in one process, with Transformers' ``generate`` for replay and answers.

::

    python -m ray_l4.bench.textbook_run EXPERIMENT.yaml THREADS
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from ray_l4.bench.textbook import Gpt2Size, TextbookExample, TextbookL4, TextbookSettings, gpt2
from ray_l4.config.loading import load_experiment
from ray_l4.setup.setup import Setup, prepare
from ray_l4.workers.process import peak_resident_bytes

T = TypeVar("T")

_PEERS = 2


class TextbookRun:
    """Two students that learn a stream task by task, replay what the first one generates, and are scored."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        experiment, tokenizer = setup.experiment, setup.tokenizer
        shape = experiment.model.from_scratch
        assert shape is not None
        torch.manual_seed(experiment.seed)
        sizes = Gpt2Size(tokenizer.size, shape.positions, shape.layers, shape.width, shape.heads, shape.dropout)
        self.models: list[PreTrainedModel] = [gpt2(sizes, tokenizer.eos) for _ in range(_PEERS)]
        training, kd = experiment.training, experiment.distillation
        self._settings = TextbookSettings(
            tokenizer.pad,
            tokenizer.eos,
            tokenizer.ans,
            lm_weight=training.lm_weight,
            kd_weight=kd.weight,
            temperature=kd.temperature,
            lr=experiment.optim.lr,
        )
        self._random = np.random.default_rng(experiment.seed)
        self.steps = 0

    def run(self) -> None:
        """Learn all tasks in turn, and answer all test sets after each of them."""
        for stage, task in enumerate(self._setup.tasks):
            examples = [
                TextbookExample(row["ids"], row["prompt_length"], row["gen"], current=True)
                for row in self._setup.training[task].to_pylist()
            ]
            self._learn([*examples, *self._replay(stage, len(examples))])
            for model in self.models:
                for tests in self._setup.tests.values():
                    prompts = tests.prompts["ids"].to_pylist()
                    for part in _chunks(prompts, self._setup.experiment.evaluation.chunk):
                        self._generate(model, part, tests.max_new_tokens, sampled=False)

    def _learn(self, examples: Sequence[TextbookExample]) -> None:
        textbook = TextbookL4(self.models, self._settings)
        size = self._setup.experiment.training.batch_size
        batch = size if isinstance(size, int) else len(examples)
        for _ in range(self._setup.experiment.training.epochs):
            order = self._random.permutation(len(examples)).tolist()
            for part in _chunks(order, batch):
                textbook.step([examples[index] for index in part])
                self.steps += 1

    def _replay(self, stage: int, num_current: int) -> list[TextbookExample]:
        """Generate pseudo-examples of all earlier tasks; those without an answer are left out."""
        if stage == 0:
            return []
        setup, tokenizer = self._setup, self._setup.tokenizer
        gens = [tokenizer.gen_of(task) for task in setup.tasks[:stage]]
        wanted = round(setup.experiment.replay.ratio * num_current)
        prompts = [[gens[index % stage]] for index in range(wanted)]
        found = []
        for part in _chunks(prompts, setup.experiment.replay.chunk):
            made = self._generate(self.models[0], part, setup.replay_length(stage) - 1, sampled=True)
            for (gen,), ids in zip(part, made, strict=True):
                if ids.count(tokenizer.ans) == 1:
                    found.append(TextbookExample(ids, ids.index(tokenizer.ans) + 1, gen, current=False))
        return found

    def _generate(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], limit: int, *, sampled: bool
    ) -> list[list[int]]:
        """Pad on the left and call ``generate``."""
        eos, pad, replay = self._settings.eos, self._settings.pad, self._setup.experiment.replay
        longest = max(len(own) for own in prompts)
        ids_BT = torch.tensor([[pad] * (longest - len(own)) + list(own) for own in prompts])
        mask_BT = torch.tensor([[0] * (longest - len(own)) + [1] * len(own) for own in prompts])
        model.eval()
        model.generation_config = GenerationConfig(
            max_new_tokens=limit,
            do_sample=sampled,
            top_k=replay.top_k if sampled else None,
            temperature=replay.temperature if sampled else None,
            eos_token_id=eos,
            pad_token_id=pad,
        )
        with torch.inference_mode():
            new_BT = model.generate(input_ids=ids_BT, attention_mask=mask_BT)[:, longest:].tolist()
        model.train()
        return [row[: row.index(eos)] if eos in row else row for row in new_BT]


def _chunks(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for first in range(0, len(items), size):
        yield list(items[first : first + size])


def main(experiment: Path, threads: int) -> None:
    """Run ``experiment`` and print steps and memory as JSON."""
    torch.set_num_threads(threads)
    run = TextbookRun(prepare(load_experiment(experiment)))
    run.run()
    print(
        json.dumps(
            {
                "steps": run.steps,
                "peak_rss_bytes": peak_resident_bytes(),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
