"""The clean-up that the reference applies to every decoded text."""

from __future__ import annotations

# In the order of the reference, which applies them one after another (REFERENCE.md#base-tokeniser).
REPLACEMENTS: tuple[tuple[str, str], ...] = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def clean_up(text: str) -> str:
    """Join punctuation and English contractions to the word before them (REFERENCE.md#base-tokeniser).

    Predictions and references both go through this, so that a score compares like with like.
    """
    for old, new in REPLACEMENTS:
        text = text.replace(old, new)
    return text
