"""Secrets in texts that are kept or shown: passwords, tokens and keys are replaced by asterisks."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

HIDDEN = "***"
_SECRET_NAME = (
    r"(?:\w*[_-])?"
    r"(?:token|secret|password|passwd|credentials?|sig|key|(?:api|access|secret|private|account)key)"
)
"""What a secret is called. Not ``tokens``, which are counted, nor ``token_path``, which says where one is."""
_NAMED = re.compile(rf"(?i)(?<![\w-])((?:--?)?(?:[\w-]+\.)*{_SECRET_NAME})(=|:\s*)([^\s&,;\"'}}]+)")
_OPTION = re.compile(rf"(?i)--?(?:[\w-]+\.)*{_SECRET_NAME}")
_PASSWORD = re.compile(r"(?<=//)([^/@:\s]*):[^/@\s]*@")
_RECOGNISED = re.compile(r"\b(hf_|gh[opsu]_|github_pat_|glpat-|sk-)[\w-]{16,}|\b(AKIA|ASIA)[A-Z0-9]{16}\b")
"""Tokens that services mark by how they begin."""
_ENVIRONMENT = re.compile(rf"(?i){_SECRET_NAME}")
_SHORTEST = 8
"""Characters of a variable's value that is looked for in texts: a shorter one could be any word."""


def redacted(text: str) -> str:
    """Return ``text`` without passwords of addresses, tokens of services, and secrets that this process was given.

    The last are the values of environment variables whose names say so, such as ``WANDB_API_KEY``.
    """
    for secret in _given():
        text = text.replace(secret, HIDDEN)
    text = _PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    return _RECOGNISED.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}", text)


def redacted_command(words: Sequence[str]) -> str:
    """Return a command line for a shell, without the values of options and keys that are secret by their names."""
    pairs = zip(["", *words], words, strict=False)
    return shlex.join(HIDDEN if _OPTION.fullmatch(before) else _redacted_word(word) for before, word in pairs)


def redacted_address(address: str) -> str:
    """Return an address without its password, and without the values of its options that are secret."""
    return _redacted_word(address)


def holds_secret(address: str) -> bool:
    """Return whether an address contains a password, or a key among its options."""
    return _PASSWORD.search(address) is not None or _NAMED.search(address) is not None


def _redacted_word(word: str) -> str:
    return redacted(_NAMED.sub(rf"\1\2{HIDDEN}", word))


def _given() -> list[str]:
    """Return the secrets of the environment, the longest first: one may be the beginning of another."""
    found = {value for name, value in os.environ.items() if _ENVIRONMENT.fullmatch(name) and len(value) >= _SHORTEST}
    return sorted(found, key=len, reverse=True)
