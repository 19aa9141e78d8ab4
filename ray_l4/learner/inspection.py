"""Operations on a single model: answers to a test set, pseudo-examples, and merging of adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ray_l4.config.experiment import EvaluationConfig, ReplayConfig
from ray_l4.config.model import ModelConfig
from ray_l4.errors import ConfigError
from ray_l4.learner.answering import answer, generate_replay
from ray_l4.learner.models import arithmetic, load_adapters
from ray_l4.seeds import derive
from ray_l4.store.atomic import write_folder
from ray_l4.text.chunks import in_chunks
from ray_l4.text.replay import PseudoExample, parse
from ray_l4.text.test_sets import Scored, TestSet
from ray_l4.text.tokenizer import TaskTokenizer


def device_named(name: str) -> torch.device:
    """Return the device ``cpu`` or ``cuda``; with ``auto``, a GPU if there is one.

    Raises ConfigError if there is no such device.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("--device cuda: PyTorch sees no GPU on this machine. Give --device cpu, or leave it out.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


@dataclass(frozen=True)
class LoadedModel:
    """A model that answers and generates, on its device."""

    model: PreTrainedModel
    tokenizer: TaskTokenizer
    settings: ModelConfig
    """The settings of the model in its run, such as the precision."""

    def knowing(self, task: str) -> LoadedModel:
        """Return the same model with a spare token for ``task``, unless the task has one."""
        return replace(self, tokenizer=self.tokenizer.assign(task))

    def answer(self, tests: TestSet, config: EvaluationConfig, seed: int) -> Scored:
        """Answer a whole test set and score the answers."""
        with arithmetic(self.settings, self.model.device):
            return answer(self.model, self.tokenizer, tests, config, seed)

    def generate(
        self, task: str, count: int, longest: int, config: ReplayConfig, seed: int
    ) -> Iterator[dict[str, str | bool]]:
        """Yield ``count`` pseudo-examples of ``task``, each of at most ``longest`` tokens.

        ``valid`` in each of them says whether replay would keep it. Raises ModelError if the tokeniser has no token for
        the task.
        """
        tokenizer = self.tokenizer
        gen = tokenizer.gen_of(task)
        for chunk in in_chunks(count, config.chunk):
            seeds = [derive(seed, "generate", task, index) for index in chunk]
            with arithmetic(self.settings, self.model.device):
                generated = generate_replay(self.model, tokenizer, [gen] * len(chunk), seeds, longest, config)
            for ids in generated:
                parsed = parse(ids.tolist(), tokenizer)
                if isinstance(parsed, PseudoExample):
                    question, answer_text = tokenizer.decode(parsed.question), tokenizer.decode(parsed.answer)
                    yield {"valid": True, "question": question.strip(), "answer": answer_text.strip()}
                else:
                    yield {"valid": False, "reason": str(parsed), "text": tokenizer.decode(ids.tolist()[1:]).strip()}


def merge_folder(folder: Path, out: Path, trusted: bool = False) -> None:
    """Merge the adapters of the checkpoint in ``folder`` into their base model, and write it to the new folder ``out``.

    ``AutoModelForCausalLM.from_pretrained`` loads it without peft. The tokeniser with its task tokens is copied.
    ``trusted``: let code that comes with the base model run.
    Raises ConfigError if ``out`` exists, ModelError if there are no adapters or their base model is not found.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists already. Name a new folder for the merged model.")
    tuned, tokenizer = load_adapters(folder, trusted=trusted)
    merged = tuned.merge_and_unload()

    def fill(beside: Path) -> None:
        merged.save_pretrained(beside)
        tokenizer.save(beside)

    write_folder(out, fill)
