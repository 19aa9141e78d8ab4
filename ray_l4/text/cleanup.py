"""The clean-up that the reference applies to every decoded text."""

from __future__ import annotations

# In the order of the reference, which applies them one after another (SPEC 3.1).
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
    """Join punctuation and English contractions to the word before them (SPEC 3.1).

    Predictions and references both go through this, so that a score compares like with like.
    """
    for old, new in REPLACEMENTS:
        text = text.replace(old, new)
    return text
