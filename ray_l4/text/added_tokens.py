"""Text of the added tokens that every tokeniser has (REFERENCE.md#added-tokens), apart from those of the tasks."""

ANS, PAD, UNK = "__ans__", "__pad__", "__unk__"
TASK_TOKENS_FILE = "task_tokens.json"
"""File beside a saved tokeniser: the token of every task, and the spare ones."""
END = "__end_of_example__"
"""With a chat template only: ends an LM sequence, in which the template's end of turn stands after every turn."""
