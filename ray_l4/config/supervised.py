"""What a supervised command and its supervisor agree on: the pipe on which the command says that it is alive."""

from __future__ import annotations

SUPERVISED = "RAY_L4_SUPERVISED"
"""Environment variable of a supervised command: the pipe on which it says how it ends, and its supervisor's number."""

ENDED, LOST, ALIVE = b"e", b"l", b"."
"""What a command says: that it ends by itself, that its Ray session has died, or that it is alive (every second)."""
