"""The heads of the loss, by name: those of LAMOL (REFERENCE.md#lamol-loss), and answers of the student's own."""

from __future__ import annotations

from typing import Literal

Head = Literal["qa", "lm", "own"]
"""``qa`` bears a loss on the answer, ``lm`` on the whole text from the task token on, ``own`` on an answer that the
student gave itself in the step (REFERENCE.md#on-policy)."""
