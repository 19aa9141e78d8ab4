"""The two sides that ``ray-l4 bench step`` compares, each in a process of its own: a student's step here, and the
textbook's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from ray_l4.bench.lengths import Pair
from ray_l4.bench.spans import Counts, counts, shares, span, synchronise
from ray_l4.bench.textbook import Gpt2Size, TextbookExample, TextbookL4, TextbookSettings, gpt2
from ray_l4.bench.workload import TASK, synthetic_tokenizer
from ray_l4.config.cluster import ExchangeConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.exchange.codecs import build_codec
from ray_l4.learner.initial_model import initial_model
from ray_l4.learner.learner import Learner
from ray_l4.methods import get_method, resolved
from ray_l4.methods.copying import changed
from ray_l4.seeds import derive
from ray_l4.text.sampler import Sampler
from ray_l4.text.tokens import sequence_lengths, tokens_table
from ray_l4.workers.process import peak_resident_bytes

_POSITIONS = 1024
_WIDTH_PER_HEAD = 64
_PEERS = 2
_UNCLIPPED = 1e9


class Shape(NamedTuple):
    """The size of a GPT-2."""

    layers: int
    width: int
    vocabulary: int

    @property
    def heads(self) -> int:
        """The number of heads of attention."""
        return max(2, self.width // _WIDTH_PER_HEAD)

    def gpt2(self, vocabulary: int, positions: int, dropout: float = 0.0) -> Gpt2Size:
        """Return the whole size of a model."""
        return Gpt2Size(vocabulary, positions, self.layers, self.width, self.heads, dropout)


SHAPES = {"small": Shape(3, 128, 3_000), "large": Shape(4, 256, 50_257), "gpt2": Shape(12, 768, 50_257)}
"""Name of a model -> its size; ``gpt2`` is that of the papers."""


@dataclass(frozen=True)
class StepCase:
    """What both sides do."""

    model: str
    batch: int
    lengths: Sequence[Pair] = field(repr=False)
    """Of all examples; a step takes the next ``batch`` of them in the order of the sampler."""
    threads: int
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    dropout: float = 0.1
    compile: bool = False
    """Whether the blocks of the students here are compiled."""

    @property
    def num_steps(self) -> int:
        """The number of steps that the examples are enough for."""
        return len(self.lengths) // self.batch

    def experiment(self, dropout: float) -> ExperimentConfig:
        """Return an experiment of two students with this dropout, otherwise as the papers have it."""
        shape = SHAPES[self.model]
        size = {"layers": shape.layers, "width": shape.width, "heads": shape.heads}
        model = {**size, "positions": _POSITIONS, "vocabulary": shape.vocabulary, "dropout": dropout}
        sections = {
            "stream": [TASK],
            "model": {"from_scratch": model, "precision": self.precision, "compile": self.compile},
            "training": {"epochs": 1, "batch_size": self.batch},
            "optim": {"variant": "torch", "eps": 1e-8},
            "peers": {"init": "own"},
        }
        return resolved(ExperimentConfig.model_validate(sections))

    def table(self) -> pa.Table:
        """Return examples of these lengths, with random tokens, as a ``TOKENS`` table."""
        tokenizer = synthetic_tokenizer(SHAPES[self.model].vocabulary)
        generator = np.random.default_rng(derive(0, "bench step"))
        first = 1 + max(tokenizer.ans, tokenizer.pad, tokenizer.eos, tokenizer.gen_of(TASK))
        ids = [generator.integers(first, tokenizer.size, size=length, dtype=np.int32) for length, _ in self.lengths]
        prompts = [length - answer for length, answer in self.lengths]
        for own, prompt in zip(ids, prompts, strict=True):
            own[prompt - 1] = tokenizer.ans
        names = [str(index) for index in range(len(ids))]
        gens, tasks = [tokenizer.gen_of(TASK)] * len(ids), [TASK] * len(ids)
        return tokens_table([own.tolist() for own in ids], prompts, gens, tasks, names, "real")


class _Steps(Protocol):
    """Two students that learn one step after another."""

    def step(self, number: int) -> list[float]:
        """Learn a step; returns the loss of each student."""


class Side:
    """One side, in this process."""

    def __init__(self, case: StepCase, textbook: bool) -> None:
        torch.set_num_threads(case.threads)
        self._case = case
        self._device = torch.device(case.device)
        self._make = _Textbook if textbook else _Here
        self._before = peak_resident_bytes()
        self._steps: _Steps = self._make(case, case.dropout)

    def step(self, number: int) -> tuple[float, float]:
        """Learn a step; returns the CPU-seconds of this process, and the seconds that passed."""
        cpu, wall = time.process_time(), time.perf_counter()
        self._steps.step(number)
        synchronise(self._device)
        return time.process_time() - cpu, time.perf_counter() - wall

    def peak_memory(self) -> tuple[int, int]:
        """Return the peak memory of this process in bytes, and how much of it came after the libraries were loaded."""
        if self._device.type == "cuda":
            peak = int(torch.cuda.max_memory_allocated(self._device))
            return peak, peak
        peak = peak_resident_bytes()
        return peak, peak - self._before

    def gradients(self) -> list[np.ndarray]:
        """Return the gradients of both students' first step without dropout, by parameter."""
        steps = self._make(self._case, 0.0, _UNCLIPPED)
        recorded: list[np.ndarray] = []
        for optimizer, model in zip(steps.optimizers, steps.models, strict=True):

            def note(optimizer: Any, *arguments: Any, own: PreTrainedModel = model) -> None:
                recorded.extend(weight.grad.float().cpu().numpy().copy() for weight in own.parameters())

            optimizer.register_step_pre_hook(note)
        steps.step(0)
        return recorded

    def counts(self, number: int) -> Counts:
        """Count the operations and bytes of two more steps; returns those of one."""
        numbers = iter((number, number + 1))
        return counts(lambda: self._steps.step(next(numbers)))

    def shares(self, numbers: Sequence[int]) -> dict[str, float]:
        """Learn more steps; returns the share of time of every span."""
        return shares(lambda: [self._steps.step(number) for number in numbers])


class _Here:
    """Two students of this project, in one process, that exchange predictions with the codec ``auto``."""

    def __init__(self, case: StepCase, dropout: float, max_grad_norm: float = 1.0) -> None:
        experiment = case.experiment(dropout)
        experiment = changed(experiment, training=changed(experiment.training, max_grad_norm=max_grad_norm))
        tokenizer, device = synthetic_tokenizer(SHAPES[case.model].vocabulary), torch.device(case.device)
        self._codec = build_codec(ExchangeConfig(codec="auto"), experiment)
        table = case.table()
        learners = [
            Learner(
                peer, initial_model(experiment, peer, tokenizer).to(device), tokenizer, experiment, get_method("l4")
            )
            for peer in range(_PEERS)
        ]
        self._runs = [learner.begin_stage(0, table) for learner in learners]
        self.models = [learner.model for learner in learners]
        self.optimizers = [run.optimizer for run in self._runs]

    def step(self, number: int) -> list[float]:
        sent = []
        for run in self._runs:
            predictions = run.forward(number)
            with span("exchange"):
                sent.append(self._codec.encode(predictions, 0))
        return [
            run.backward(number, [self._codec.decode(sent[1 - peer])])["loss"] for peer, run in enumerate(self._runs)
        ]


class _Textbook:
    """The textbook's students, which begin with the same weights and learn the same batches."""

    def __init__(self, case: StepCase, dropout: float, max_grad_norm: float = 1.0) -> None:
        experiment = case.experiment(dropout)
        shape, tokenizer = SHAPES[case.model], synthetic_tokenizer(SHAPES[case.model].vocabulary)
        sizes = shape.gpt2(tokenizer.size, _POSITIONS, dropout)
        self.models: list[PreTrainedModel] = []
        for peer in range(_PEERS):
            model = gpt2(sizes, tokenizer.eos)
            model.load_state_dict(initial_model(experiment, peer, tokenizer).state_dict())
            self.models.append(model.to(torch.device(case.device)))
        settings = TextbookSettings(
            tokenizer.pad,
            tokenizer.eos,
            tokenizer.ans,
            lr=experiment.optim.lr,
            max_grad_norm=max_grad_norm,
            bfloat16=case.precision == "bfloat16",
        )
        self._textbook = TextbookL4(self.models, settings)
        self.optimizers = self._textbook.optimizers
        self._table = case.table()
        training = experiment.training
        self._sampler = Sampler(sequence_lengths(self._table), experiment.seed, 0, training.epochs, case.batch, None)

    def step(self, number: int) -> list[float]:
        rows = self._table.take(pa.array(self._sampler.indices(number))).to_pylist()
        return self._textbook.step(
            [TextbookExample(row["ids"], row["prompt_length"], row["gen"], current=True) for row in rows]
        )
