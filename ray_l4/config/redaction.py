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
_USER = re.compile(r"(?i)(?<=\bhttps://)[^/@:\s]+(?=@)|(?<=\bhttp://)[^/@:\s]+(?=@)")
"""Who is in front of a host without a password: a token, as a rule. Other schemes have names of containers there."""
_IN_TEXT = re.compile(rf"(?i)([?&]{_SECRET_NAME}=|(?<!\S)--?(?:[\w-]+\.)*{_SECRET_NAME}[= ])([^\s&,;\"']+)")
"""Options of addresses and of commands within a text."""
_RECOGNISED = re.compile(r"\b(hf_|gh[opsu]_|github_pat_|glpat-|sk-)[\w-]{16,}|\b(AKIA|ASIA)[A-Z0-9]{16}\b")
"""Tokens that services mark by how they begin."""
_ENVIRONMENT = re.compile(rf"(?i){_SECRET_NAME}")
_SHORTEST = 8
"""Characters of a variable's value that is looked for in texts: a shorter one could be any word."""


def redacted(text: str) -> str:
    """Return ``text`` without what is secret in it.

    That is passwords of addresses, tokens of services, values of options that are secret by their names, and values of
    environment variables of this process whose names say so, such as ``WANDB_API_KEY``.
    """
    for secret in _given():
        text = text.replace(secret, HIDDEN)
    text = _USER.sub(HIDDEN, _PASSWORD.sub(rf"\1:{HIDDEN}@", text))
    text = _IN_TEXT.sub(rf"\1{HIDDEN}", text)
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
