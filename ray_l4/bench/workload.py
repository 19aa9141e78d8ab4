"""Synthetic examples for the students of a benchmark: random tokens from a vocabulary of any size, always the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError
from ray_l4.learner.model_config import longest_sequence
from ray_l4.methods import get_method, graph_of, resolved
from ray_l4.seeds import derive
from ray_l4.setup.setup import Setup
from ray_l4.text.added_tokens import ANS, PAD, UNK
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import tokens_table

TASK = "bench"
LEAST_TOKENS = 8
"""Fewest positions of an example that hold a question and an answer in both heads."""
_END, _TASK_TOKEN = "<|endoftext|>", f"__{TASK}__"
_SPECIAL = (ANS, PAD, UNK, _END, _TASK_TOKEN)
_WIDTH_PER_HEAD = 64
_POSITIONS_PER_ANSWER_POSITION = 4


@dataclass(frozen=True)
class Workload:
    """The size of the model and of a step's batch."""

    vocab: int
    """Entries of the tokeniser, and of each prediction."""
    examples: int
    """Examples of a batch."""
    tokens: int
    """Positions of an example that bear a target and a prediction, both heads together."""
    layers: int
    width: int

    @property
    def positions(self) -> int:
        """Predictions of a student in a step."""
        return self.examples * self.tokens

    @property
    def dense_bytes(self) -> int:
        """Bytes of a step's predictions in float32."""
        return 4 * self.positions * self.vocab

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, roughly: the embeddings, and twelve squares of the width per layer."""
        return (self.vocab + self.tokens) * self.width + 12 * self.layers * self.width**2

    def experiment(self, peers: int) -> ExperimentConfig:
        """Return an experiment with ``peers`` students, initialised differently, that all learn from each other.

        Raises ValidationError (pydantic) for impossible sizes of a model.
        """
        heads = self.width // _WIDTH_PER_HEAD if self.width % _WIDTH_PER_HEAD == 0 else 1
        shape = {"layers": self.layers, "width": self.width, "heads": heads}
        sections = {
            "name": "bench",
            "stream": [TASK],
            "model": {"from_scratch": {**shape, "positions": self.tokens, "vocabulary": self.vocab}},
            "training": {"epochs": 1, "batch_size": self.examples},
            "peers": {"count": peers, "init": "own"},
        }
        return resolved(ExperimentConfig.model_validate(sections))

    def setup(self, peers: int, steps: int) -> Setup:
        """Return the setup of a run of ``steps`` steps. Raises ConfigError if ``tokens`` is too small."""
        if self.tokens < LEAST_TOKENS:
            raise ConfigError(f"--tokens {self.tokens}: expected at least {LEAST_TOKENS}, a question and an answer")
        experiment, tokenizer = self.experiment(peers), synthetic_tokenizer(self.vocab)
        return Setup(
            experiment=experiment,
            method=get_method(experiment.method),
            topology=graph_of(experiment),
            tokenizer=tokenizer,
            max_length=longest_sequence(self.tokens, experiment.model.max_length),
            training={TASK: self._stream(tokenizer, steps)},
            tests={},
        )

    def _stream(self, tokenizer: TaskTokenizer, steps: int) -> pa.Table:
        """Return examples of one length, with a quarter of the positions in the answer head and the rest in the other.

        Y_lm is one longer than the ids, Y_qa one longer than the answer (REFERENCE.md#assembly).
        """
        of_answer = max(2, self.tokens // _POSITIONS_PER_ANSWER_POSITION)
        length, answer = self.tokens - of_answer - 1, of_answer - 1
        rows = self.examples * steps
        generator = np.random.default_rng(derive(0, "bench"))
        ids = generator.integers(len(_SPECIAL), self.vocab, size=(rows, length), dtype=np.int32)
        prompt = length - answer
        ids[:, prompt - 1] = tokenizer.ans
        names = [f"bench-{row}" for row in range(rows)]
        return tokens_table(list(ids), [prompt] * rows, [tokenizer.gen_of(TASK)] * rows, [TASK] * rows, names, "real")


def synthetic_tokenizer(vocab: int) -> TaskTokenizer:
    """Return a tokeniser of ``vocab`` entries, added tokens included; only its special ids are ever used."""
    words = [*_SPECIAL, *(f"w{index}" for index in range(len(_SPECIAL), vocab))]
    unknown = words[-1]
    table = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=unknown))
    fast = PreTrainedTokenizerFast(tokenizer_object=table, eos_token=_END, pad_token=PAD, unk_token=unknown)
    return TaskTokenizer(fast, {TASK: words.index(_TASK_TOKEN)}, ())
