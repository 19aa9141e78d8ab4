"""The two heads of LAMOL's loss, by name (REFERENCE.md#lamol-loss)."""

from __future__ import annotations

from typing import Literal

Head = Literal["qa", "lm"]
"""``qa`` bears a loss on the answer, ``lm`` on the whole text from the task token on."""
