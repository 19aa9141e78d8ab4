"""The commands of README.md, CONTRIBUTING.md and docs/, read from their Markdown, and what each needs to be run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted((REPOSITORY / "docs").glob("*.md")))]
PROGRAMS = ("ray-l4", "python -m", "bash launch/", "launch/", "ray", "sbatch", "docker", "kubectl", "tensorboard")
"""How lines of commands begin."""

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(ray-l4 [a-z][^`]*)`")


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    page: str
    line: int
    language: str
    text: str
    """Continued lines are joined."""

    @property
    def is_program(self) -> bool:
        """Whether this is Python that runs by itself, rather than a part of something."""
        return self.language == "python" and self.text.startswith(("import ", "from "))


@dataclass(frozen=True)
class Rule:
    """What a block needs to be run once, as ``blocks.yaml`` has it."""

    page: str
    contains: str
    """Text that only this block of the page contains."""
    before: str = ""
    """Commands to run first, for what the reader of the page would have by then."""
    replace: dict[str, str] = field(default_factory=dict)
    """Text to replace: placeholders by values, sizes by smaller ones."""
    leave_out: dict[str, str] = field(default_factory=dict)
    """Beginnings of lines that are not run, and why."""
    not_run: str = ""
    """Why nothing of the block is run."""
    code: int = 0
    """Exit code of the block."""
    files: list[str] = field(default_factory=list)
    """Files that exist afterwards, as glob patterns."""
    data: bool = False
    """Whether the block reads the real data sets."""


@cache
def blocks() -> tuple[Block, ...]:
    """Return all blocks of code, in the order in which a reader meets them."""
    found = []
    for page in PAGES:
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            code = re.sub(f"(?m)^{match['indent']}", "", match["text"])
            found.append(Block(page, line, match["language"], re.sub(r"\\\n +", "", code)))
    return tuple(found)


def inline_commands() -> list[tuple[str, str]]:
    """Return all commands within sentences, with their pages."""
    found = []
    for page in PAGES:
        text = _BLOCK.sub("", (REPOSITORY / page).read_text(encoding="utf-8"))
        found += [(page, " ".join(match[1].split())) for match in _INLINE.finditer(text)]
    return found


@cache
def rules() -> tuple[Rule, ...]:
    """Return the rules of ``blocks.yaml``."""
    text = Path(__file__).with_name("blocks.yaml").read_text(encoding="utf-8")
    return tuple(Rule(**rule) for rule in yaml.safe_load(text))


def rule_of(block: Block) -> Rule:
    """Return the rule of a block; without one, the block is run as it is."""
    matching = [rule for rule in rules() if rule.page == block.page and rule.contains in block.text]
    assert len(matching) <= 1, f"{block.page}:{block.line} has several rules in blocks.yaml"
    return matching[0] if matching else Rule(block.page, block.text)


def script_of(block: Block) -> str:
    """Return the block as a script, changed as its rule says. Every part of the rule must apply."""
    rule, lines = rule_of(block), block.text.splitlines()
    for start in rule.leave_out:
        assert any(line.startswith(start) for line in lines), f"{block.page}:{block.line} has no line {start!r}"
        lines = [line for line in lines if not line.startswith(start)]
    text = "\n".join(lines)
    for old, new in rule.replace.items():
        assert old in text, f"{block.page}:{block.line} has no {old!r}, which blocks.yaml replaces"
        text = text.replace(old, new)
    lines = text.splitlines()
    if block.is_program:
        lines = ["python - <<'END'", *lines, "END"]
    return "\n".join(["set -euo pipefail", rule.before, *lines, ""])
