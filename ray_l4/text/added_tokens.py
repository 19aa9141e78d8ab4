"""Text of the added tokens (REFERENCE.md#added-tokens)."""

from __future__ import annotations

from ray_l4.errors import ConfigError

ANS, PAD, UNK = "__ans__", "__pad__", "__unk__"
"""Tokens that every tokeniser has, apart from those of the tasks."""
TASK_TOKENS_FILE = "task_tokens.json"
"""File beside a saved tokeniser: the token of every task, and the spare ones."""
END = "__end_of_example__"
"""With a chat template only: ends an LM sequence, in which the template's end of turn stands after every turn."""


def task_token(task: str) -> str:
    """Return ``__<task>__``. Raises ConfigError if another added token has that name."""
    token = f"__{task}__"
    if token in (ANS, PAD, UNK, END) or task.startswith("spare_"):
        raise ConfigError(f"A task cannot be called '{task}': the token '{token}' has another use. Rename the task.")
    return token
