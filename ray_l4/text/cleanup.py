"""Clean-up of decoded text, as in the reference implementation."""

from __future__ import annotations

# Applied one after another, in the order of the reference implementation (REFERENCE.md#base-tokeniser).
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
    """Attach punctuation and English contractions to the preceding word (REFERENCE.md#base-tokeniser).

    Applied to both predictions and references, so that scores compare like with like.
    """
    for old, new in REPLACEMENTS:
        text = text.replace(old, new)
    return text
