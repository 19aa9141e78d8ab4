"""One checkpoint by itself: its score on a task, what it makes up, and its adapters folded into their model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ray_l4.config.experiment import DataConfig, EvaluationConfig, ReplayConfig, TaskConfig
from ray_l4.errors import ConfigError
from ray_l4.learner.answering import answer, generate_replay
from ray_l4.learner.model_config import max_length
from ray_l4.learner.models import load_adapters, load_folder
from ray_l4.seeds import derive
from ray_l4.store.atomic import write_folder
from ray_l4.tasks.registry import load, metric_of
from ray_l4.text.chunks import in_chunks
from ray_l4.text.replay import PseudoExample, parse_generated
from ray_l4.text.test_sets import Scored, TestSet, build_test_set


def evaluate_folder(
    folder: Path, task: TaskConfig, data: DataConfig, config: EvaluationConfig, seed: int
) -> tuple[Scored, TestSet]:
    """Answers of the checkpoint in ``folder`` to the test set of ``task``, which it need not have learned.

    Raises ModelError if the folder holds no checkpoint, and what loading the task raises.
    """
    examples = load(task, "test", data)
    model, tokenizer = load_folder(folder)
    tokenizer = tokenizer.assign(task.name)
    tests = build_test_set(examples, metric_of(task), tokenizer, max_length(model.config, None), config)
    return answer(model, tokenizer, tests, config, seed), tests


def generate_from_folder(
    folder: Path, task: str, count: int, config: ReplayConfig, seed: int
) -> Iterator[dict[str, str | bool]]:
    """``count`` pseudo-examples of ``task`` by the checkpoint in ``folder``, each with whether replay would keep it.

    Raises ModelError if the folder holds no checkpoint, or one that has no token for the task.
    """
    model, tokenizer = load_folder(folder)
    gen = tokenizer.gen_of(task)
    longest = max_length(model.config, config.max_length)
    for chunk in in_chunks(count, config.chunk):
        seeds = [derive(seed, "generate", task, index) for index in chunk]
        for ids in generate_replay(model, tokenizer, [gen] * len(chunk), seeds, longest, config):
            parsed = parse_generated(ids.tolist(), tokenizer)
            if isinstance(parsed, PseudoExample):
                question, answer_text = tokenizer.decode(parsed.question), tokenizer.decode(parsed.answer)
                yield {"valid": True, "question": question.strip(), "answer": answer_text.strip()}
            else:
                yield {"valid": False, "reason": str(parsed), "text": tokenizer.decode(ids.tolist()[1:]).strip()}


def merge_folder(folder: Path, out: Path) -> None:
    """Fold the adapters of the checkpoint in ``folder`` into their model, and write it to the new folder ``out``.

    ``AutoModelForCausalLM.from_pretrained`` loads it without peft; the tokeniser and its task tokens come along.
    Raises ConfigError if ``out`` exists, ModelError if there are no adapters or their model is not to be found.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists already. Give a new folder for the merged model.")
    tuned, tokenizer = load_adapters(folder)
    merged = tuned.merge_and_unload()

    def fill(beside: Path) -> None:
        merged.save_pretrained(beside)
        tokenizer.save(beside)

    write_folder(out, fill)
