"""A fast tokeniser with the tokens added for lifelong learning: answer, padding, and one per task."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ray_l4.errors import ModelError, nearest
from ray_l4.text.added_tokens import ANS, END, PAD, TASK_TOKENS_FILE, UNK, task_token
from ray_l4.text.base_tokenizer import load_base, train_base
from ray_l4.text.chat_template import ChatTemplate
from ray_l4.text.text_ids import TextIds


class TaskTokenizer(TextIds):
    """Conversion between text and ids (``TextIds``), with the added tokens of REFERENCE.md#added-tokens. Immutable.

    A new task takes one of the spare tokens (``assign``), so the vocabulary of the models keeps its size during a run.

    Attributes:
        gen: by task name, the id of the token that starts the task's LM sequences.
        spares: ids of the task tokens that are still free.
        fresh: ids of added tokens that the model has not learned: it has no rows for them, or meaningless ones.
        ans, pad, unk: ids of the answer, padding and unused tokens.
        chat: the model's chat template, in which its prompts are rendered; None if they are not.
        eos: id that ends an answer: the end-of-sequence token, or the template's end of turn.
        answer_start: ids between a question and its answer: ANS, or what the template writes there.
        lm_start: ids that follow the task token in every LM sequence, so that they are given and not predicted.
        lm_end: ids that end an LM sequence; the last one ends nothing else.
        size: number of entries, including added tokens.
    """

    def __init__(
        self,
        hf: PreTrainedTokenizerBase,
        gen: Mapping[str, int],
        spares: Sequence[int],
        fresh: Collection[int] = (),
        chat: bool = False,
    ) -> None:
        """Wrap ``hf``, which has the added tokens. ``chat``: render prompts in its chat template."""
        self.gen = dict(gen)
        self.spares = tuple(spares)
        self.fresh = frozenset(fresh)
        self.ans, self.pad, self.unk = (int(i) for i in hf.convert_tokens_to_ids([ANS, PAD, UNK]))
        self.chat = ChatTemplate(hf) if chat else None
        self.eos, self.answer_start, self.lm_end = _marks(hf, self.ans, self.chat)
        self.lm_start = self.chat.beginning if self.chat else ()
        own = {self.ans, self.pad, self.unk, *self.lm_end[1:], *self.gen.values(), *self.spares}
        self.size = max(len(hf), 1 + max(own))  # a base vocabulary may have holes
        super().__init__(hf, own, self.eos)

    @classmethod
    def pretrained(
        cls,
        name: str | Path,
        tasks: Sequence[str],
        spare: int,
        shared: bool = False,
        chat: bool = True,
        trusted: bool = False,
    ) -> TaskTokenizer:
        """Build the tokeniser of a pretrained model with the added tokens. Raises as ``load_base``.

        A checkpoint of a run keeps the tokens of the tasks that it has learned and its own number of spare ones.

        Args:
            name: hub name or folder of the model.
            tasks: names of the tasks, in order.
            spare: number of spare task tokens.
            shared: let all tasks use the first one's token (LAMOL-GEN, REFERENCE.md#added-tokens, #other-modes).
            chat: render prompts in the tokeniser's chat template, if it has one.
            trusted: let code that comes with the model run (``model.trust_custom_code``).
        """
        if (Path(name) / TASK_TOKENS_FILE).is_file():
            saved = cls.load(name)
            return cls(saved.hf, saved.gen, saved.spares, saved.fresh, chat and saved.chat is not None).with_tasks(
                tasks, shared
            )
        base = load_base(name, trusted)
        return cls._extend(base, tasks, spare, shared, chat and bool(base.chat_template))

    @classmethod
    def trained(
        cls, texts: Iterable[str], vocabulary: int, tasks: Sequence[str], spare: int, shared: bool = False
    ) -> TaskTokenizer:
        """Train a byte-level BPE on ``texts`` and add the tokens. Raises as ``train_base``.

        Args:
            vocabulary: largest number of entries before the added tokens.
            tasks, spare, shared: as for ``pretrained``.
        """
        return cls._extend(train_base(texts, vocabulary), tasks, spare, shared)

    @classmethod
    def _extend(
        cls, hf: PreTrainedTokenizerBase, tasks: Sequence[str], spare: int, shared: bool, chat: bool = False
    ) -> TaskTokenizer:
        spares = [f"__spare_{k}__" for k in range(spare)]
        names = [ANS, PAD, UNK, *map(task_token, tasks), *spares, *([END] if chat else [])]
        known = hf.get_vocab()
        _add(hf, names)
        hf.pad_token = PAD
        ids = dict(zip(names, hf.convert_tokens_to_ids(names), strict=True))
        gen = {task: ids[task_token(tasks[0] if shared else task)] for task in tasks}
        # If tasks share a token, those of the other tasks are spare too: the vocabulary is the same either way.
        free = [ids[name] for name in [*spares, *map(task_token, tasks)] if ids[name] not in gen.values()]
        return cls(hf, gen, free, [ids[name] for name in names if name not in known], chat)

    def with_tasks(self, tasks: Sequence[str], shared: bool = False) -> TaskTokenizer:
        """Return a tokeniser in which all ``tasks`` have a token; those of earlier tasks are kept.

        A new task gets the first spare token, or a new one if none is left; with ``shared``, the token of the first
        task of all. Raises ConfigError if the name of a task is taken by another added token.
        """
        for task in tasks:
            task_token(task)
        if shared:
            first = next(iter(self.gen.values()))
            return self._with({**self.gen, **dict.fromkeys(tasks, first)}, self.spares)
        grown = self
        for task in tasks:
            if task not in grown.gen and not grown.spares:
                name, known = task_token(task), self.hf.get_vocab()
                while name in known:  # its own token went to another task, as a spare one
                    name = f"_{name}_"
                _add(self.hf, [name])
                grown = grown._with(grown.gen, [self.hf.convert_tokens_to_ids(name)])
            grown = grown.assign(task)
        return grown

    def assign(self, task: str) -> TaskTokenizer:
        """Return a tokeniser whose first spare token is assigned to ``task``; ``self`` if the task has a token.

        Raises:
            ConfigError: the name is taken by another added token.
            ModelError: no spare token is left.
        """
        if task in self.gen:
            return self
        task_token(task)
        if not self.spares:
            raise ModelError(
                f"No task token is left for the new task '{task}': {len(self.gen)} tasks have one, and all spare ones "
                "are in use. Start the run with a larger model.spare_task_tokens."
            )
        first, *rest = self.spares
        return self._with({**self.gen, task: first}, rest, self.fresh | {first})

    def _with(
        self, gen: Mapping[str, int], spares: Sequence[int], fresh: Collection[int] | None = None
    ) -> TaskTokenizer:
        """Return the same tokeniser with other task tokens."""
        return TaskTokenizer(self.hf, gen, spares, self.fresh if fresh is None else fresh, self.chat is not None)

    @property
    def task_tokens(self) -> list[int]:
        """Ids of all task tokens, used and spare, in ascending order."""
        return sorted({*self.gen.values(), *self.spares})

    @property
    def shortest_generated(self) -> int:
        """The fewest tokens of a generated LM sequence: task token, ``lm_start``, and as many as ``lm_end`` has."""
        return 1 + len(self.lm_start) + len(self.lm_end)

    def gen_of(self, task: str) -> int:
        """Return the id of the task's token. Raises ModelError if it has none."""
        if task not in self.gen:
            hint = nearest(task, self.gen, "It has a token for no task.")
            raise ModelError(f"Task '{task}' has no token in this tokeniser. {hint}")
        return self.gen[task]

    def save(self, folder: str | Path) -> None:
        """Write the tokeniser in Hugging Face's format, and the assignment of tokens to tasks."""
        self.hf.save_pretrained(str(folder))
        record: dict[str, object] = {"gen": self.gen, "spares": self.spares, "fresh": sorted(self.fresh)}
        record |= {"chat_template": True} if self.chat else {}
        (Path(folder) / TASK_TOKENS_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, *, as_begun: bool = False) -> TaskTokenizer:
        """Read a tokeniser that ``save`` wrote. Raises ModelError if the folder does not contain one.

        ``as_begun``: for the models that its run began with, which had not learned the ``fresh`` tokens; otherwise for
        a model that has.
        """
        try:
            record = json.loads((Path(folder) / TASK_TOKENS_FILE).read_text(encoding="utf-8"))
            gen, spares, fresh = record["gen"], record["spares"], record.get("fresh", [])
            # Reads tokenizer.json as it is, whatever model is in the same folder.
            hf = PreTrainedTokenizerFast.from_pretrained(str(folder))
            known = range(len(hf))
            ids = (*gen.values(), *spares, *fresh) if isinstance(gen, dict) else (None,)
            if any(type(i) is not int or i not in known for i in ids):
                raise ValueError(f"{TASK_TOKENS_FILE} holds something else than the ids of its tokens")
            loaded = cls(hf, gen, spares, fresh if as_begun else (), chat=bool(record.get("chat_template")))
            loaded.round_trip("a")  # settings of a wrong type show only now
        except Exception as error:  # the libraries raise OSError, ValueError, KeyError and plain Exception here
            raise ModelError(
                f"'{folder}' does not contain a tokeniser of ray-l4 ({TASK_TOKENS_FILE} and tokenizer.json): {error}. "
                "Give the folder of a run or of one of its checkpoints."
            ) from error
        return loaded


def _add(hf: PreTrainedTokenizerBase, names: Sequence[str]) -> None:
    """Add special tokens, except those that the tokeniser has already."""
    # lstrip: an added token absorbs a preceding space, as in the reference implementation.
    added = [AddedToken(name, lstrip=True, normalized=False, special=True) for name in names]
    hf.add_tokens(added, special_tokens=True)


def _marks(
    hf: PreTrainedTokenizerBase, ans: int, chat: ChatTemplate | None
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Return ``eos``, ``answer_start`` and ``lm_end`` of a tokeniser."""
    if chat is None:
        eos = int(hf.eos_token_id)
        return eos, (ans,), (eos,)
    end = int(hf.convert_tokens_to_ids(END))
    return chat.answer_end, chat.answer_start, (chat.answer_end, end)
