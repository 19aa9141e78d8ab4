"""Reader of topology files, with one pair of teacher and student per line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ray_l4.config.loading import TOPOLOGY_NAMES
from ray_l4.config.text import index_of, shown
from ray_l4.errors import ConfigError, nearest


@dataclass(frozen=True)
class EdgesFile:
    """The pairs of a file and their line numbers."""

    path: Path
    edges: tuple[tuple[int, int], ...]
    lines: tuple[int, ...]

    def where(self, index: int) -> str:
        """Return the file and line of a pair, for a message."""
        return f"{self.path}:{self.lines[index]}"


def read_edges(path: Path) -> EdgesFile:
    """Read ``TEACHER STUDENT``, two integers per line. Blank lines and text after a ``#`` are ignored.

    Raises ConfigError if the file cannot be read, has no pairs, or has other lines, with one message line for each.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"peers.topology: no file {path}. Give {', '.join(TOPOLOGY_NAMES)}, a list of [teacher, student] pairs, or "
            f"the path of a file with one pair per line. {nearest(path.name, TOPOLOGY_NAMES)}"
        ) from None
    except OSError as error:
        raise ConfigError(f"peers.topology: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"peers.topology: {path} is not UTF-8 text; expected one pair of numbers per line") from None
    edges, lines, problems = [], [], []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if len(words) == 2 and all(index_of(word) is not None for word in words):
            edges.append((int(words[0]), int(words[1])))
            lines.append(number)
        elif words:
            problems.append(
                f"{path}:{number}: expected a teacher and its student, such as 0 1; found {shown(line.strip())}"
            )
    if problems:
        raise ConfigError("\n".join(problems))
    if not edges:
        raise ConfigError(
            f"peers.topology: {path} contains no pairs. Write one TEACHER STUDENT per line. For peers that do not "
            "teach each other, choose a method without teachers (lamol) or give an empty list: topology: []"
        )
    return EdgesFile(path, tuple(edges), tuple(lines))
