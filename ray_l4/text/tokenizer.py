"""A fast tokeniser with the tokens added for lifelong learning: answer, padding, and one per task."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ray_l4.errors import DataError, ModelError, nearest
from ray_l4.text.added_tokens import ANS, END, PAD, TASK_TOKENS_FILE, UNK, task_token
from ray_l4.text.base_tokenizer import load_base, train_base
from ray_l4.text.chat_template import ChatTemplate
from ray_l4.text.cleanup import clean_up


class TaskTokenizer:
    """Conversion between text and ids, with the added tokens of REFERENCE.md#added-tokens. Immutable.

    A new task takes one of the spare tokens (``assign``), so the vocabulary of the models keeps its size during a run.

    Attributes:
        hf: the underlying Hugging Face tokeniser.
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
        self.hf = hf
        self.gen = dict(gen)
        self.spares = tuple(spares)
        self.fresh = frozenset(fresh)
        self.ans, self.pad, self.unk = (int(i) for i in hf.convert_tokens_to_ids([ANS, PAD, UNK]))
        self.chat = ChatTemplate(hf) if chat else None
        self.eos, self.answer_start, self.lm_end = _marks(hf, self.ans, self.chat)
        self.lm_start = self.chat.beginning if self.chat else ()
        self._own = {self.ans, self.pad, self.unk, *self.lm_end[1:], *self.gen.values(), *self.spares}
        self._reserved = frozenset({*self._own, self.eos, *_special_ids(hf)})
        self.size = max(len(hf), 1 + max(self._own))  # a base vocabulary may have holes
        # Llama's tokenisers add the leading space themselves: a word then has the same ids at the start and inside.
        pair = self._ids(["a a"])[0]
        adds_space = pair[: len(pair) // 2] == pair[len(pair) // 2 :]
        self._lead = "" if adds_space else " "
        # They also remove the first space in decoding, which a word in front prevents.
        self._anchor = self.encode("a")
        self._anchor_text = self._text(self._anchor)

    @classmethod
    def pretrained(
        cls, name: str | Path, tasks: Sequence[str], spare: int, shared: bool = False, chat: bool = True
    ) -> TaskTokenizer:
        """Build the tokeniser of a pretrained model with the added tokens. Raises as ``load_base``.

        A checkpoint of a run keeps the tokens of the tasks that it has learned and its own number of spare ones.

        Args:
            name: hub name or folder of the model.
            tasks: names of the tasks, in order.
            spare: number of spare task tokens.
            shared: let all tasks use the first one's token (LAMOL-GEN, REFERENCE.md#added-tokens, #other-modes).
            chat: render prompts in the tokeniser's chat template, if it has one.
        """
        if (Path(name) / TASK_TOKENS_FILE).is_file():
            saved = cls.load(name)
            return cls(saved.hf, saved.gen, saved.spares, saved.fresh, chat and saved.chat is not None).with_tasks(
                tasks, shared
            )
        base = load_base(name)
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
            raise ModelError(f"Task '{task}' has no token in this tokeniser. {nearest(task, self.gen)}")
        return self.gen[task]

    def encode(self, text: str) -> list[int]:
        """Return the ids of the stripped text as a continuation, with one leading space; nothing for a blank text.

        Context, question and answer are each encoded like this, so their ids can be concatenated without a separator
        (REFERENCE.md#base-tokeniser). The name of a special or added token in the text is text, never that token; in
        the reference implementation it becomes the token. Raises DataError if the tokeniser cannot encode it as text.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ``encode`` of every text, computed in one call."""
        encoded = self._plain_ids(texts)
        for text, ids in zip(texts, encoded, strict=True):
            if not self._reserved.isdisjoint(ids):
                raise DataError(f"the text {text[:60]!r} {self._as_token(ids)}. Remove it from the text.")
        return encoded

    def encode_generated(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ``encode`` of texts that a model wrote, without what cannot be encoded as text."""
        return [[i for i in ids if i not in self._reserved] for ids in self._plain_ids(texts)]

    def why_unencodable(self, text: str) -> str | None:
        """Return why ``encode`` would raise DataError for a text; None if it would not."""
        ids = self._plain_ids([text])[0]
        return None if self._reserved.isdisjoint(ids) else self._as_token(ids)

    def reserved_names(self) -> list[str]:
        """List the names of all tokens that stand for something else than text, in the order of their ids."""
        return [str(name) for name in self.hf.convert_ids_to_tokens(sorted(self._reserved))]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the cleaned-up text of ``ids``, including special tokens (REFERENCE.md#base-tokeniser).

        One space precedes every added token; text keeps the leading space of its first word.
        """
        pieces = []
        for own, run in groupby(map(int, ids), key=self._own.__contains__):
            if own:
                pieces += [f" {token}" for token in self.hf.convert_ids_to_tokens(list(run))]
            else:
                pieces.append(self._text([*self._anchor, *run])[len(self._anchor_text) :])
        return clean_up("".join(pieces))

    def round_trip(self, text: str) -> str:
        """Return ``text`` encoded and decoded, neither cleaned up nor with the token for unknown words."""
        ids = self._plain_ids([text])[0]
        return str(self.hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def save(self, folder: str | Path) -> None:
        """Write the tokeniser in Hugging Face's format, and the assignment of tokens to tasks."""
        self.hf.save_pretrained(str(folder))
        record = {"gen": self.gen, "spares": self.spares} | ({"chat_template": True} if self.chat else {})
        (Path(folder) / TASK_TOKENS_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> TaskTokenizer:
        """Read a tokeniser that ``save`` wrote. Raises ModelError if the folder does not contain one."""
        try:
            record = json.loads((Path(folder) / TASK_TOKENS_FILE).read_text(encoding="utf-8"))
            gen, spares = record["gen"], record["spares"]
            # Reads tokenizer.json as it is, whatever model is in the same folder.
            hf = PreTrainedTokenizerFast.from_pretrained(str(folder))
        except Exception as error:  # the libraries raise OSError, ValueError, KeyError and plain Exception here
            raise ModelError(
                f"'{folder}' does not contain a tokeniser of ray-l4 ({TASK_TOKENS_FILE} and tokenizer.json): {error}. "
                "Give the folder of a run or of one of its checkpoints."
            ) from error
        return cls(hf, gen, spares, chat=bool(record.get("chat_template")))

    def _plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._ids([self._lead + stripped if (stripped := text.strip()) else "" for text in texts])

    def _as_token(self, ids: Sequence[int]) -> str:
        found = next(i for i in ids if i in self._reserved)
        return f"contains {self.hf.convert_ids_to_tokens(found)!r}, which this tokeniser can only encode as a token"

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:  # transformers fails on an empty batch
            return []
        encoded = self.hf(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,  # longer texts than the model's are truncated later, so a warning would mislead
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _text(self, ids: list[int]) -> str:
        return str(self.hf.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _add(hf: PreTrainedTokenizerBase, names: Sequence[str]) -> None:
    """Add special tokens, except those that the tokeniser has already."""
    # lstrip: an added token absorbs a preceding space, as in the reference implementation.
    added = [AddedToken(name, lstrip=True, normalized=False, special=True) for name in names]
    hf.add_tokens(added, special_tokens=True)


def _special_ids(hf: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of all special tokens but the one for unknown words, for which any text may stand."""
    marked = {number for number, token in hf.added_tokens_decoder.items() if token.special}
    return {*marked, *hf.all_special_ids} - {hf.unk_token_id}


def _marks(
    hf: PreTrainedTokenizerBase, ans: int, chat: ChatTemplate | None
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Return ``eos``, ``answer_start`` and ``lm_end`` of a tokeniser."""
    if chat is None:
        eos = int(hf.eos_token_id)
        return eos, (ans,), (eos,)
    end = int(hf.convert_tokens_to_ids(END))
    return chat.answer_end, chat.answer_start, (chat.answer_end, end)
