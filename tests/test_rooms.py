"""Which room may import which: read from the source, so that a wrong import fails even where no test runs it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ray_l4"

# A room imports only from those to its right; the last two not even from each other.
ORDER = (
    *("cli", "live", "serve", "sweep", "bench", "planning", "run", "monitor", "cluster", "workers", "report", "setup"),
    "exchange",
    *("learner", "methods", "losses", "text", "tasks", "metrics", "store", "config", "errors", "seeds"),
)
MAY_IMPORT = {room: set(ORDER[ORDER.index(room) :]) for room in ORDER} | {"errors": {"errors"}, "seeds": {"seeds"}}
USES_RAY = {"serve", "sweep", "bench", "run", "cluster", "workers"}


def imported_modules(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of all that a file imports, also within functions and for types only."""
    inside = [package.name, *path.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = inside[: len(inside) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def violations(package: Path) -> list[str]:
    """One line for each import that the order forbids, and for each room that it does not know."""
    found = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        room = place.with_suffix("").parts[0]
        if room == "__init__":
            continue
        if room not in MAY_IMPORT:
            found.append(f"{place}: room {room!r} is not in the order")
            continue
        for line, name in imported_modules(path, package):
            top, *rest = name.split(".")
            if top == "analysis":
                found.append(f"{place}:{line}: {room} may not import analysis, which is not installed")
            elif top == "ray" and room not in USES_RAY:
                found.append(f"{place}:{line}: {room} may not import Ray")
            elif top == package.name and rest and rest[0] in ORDER and rest[0] not in MAY_IMPORT[room]:
                found.append(f"{place}:{line}: {room} may not import {rest[0]}")
    return found


def circle(package: Path) -> list[str]:
    """Modules each of which imports the next, the last of them the first; empty if there are none."""
    parts = {path: (package.name, *path.relative_to(package).with_suffix("").parts) for path in package.rglob("*.py")}
    modules = {".".join(names).removesuffix(".__init__"): path for path, names in parts.items()}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {name for _, name in imported_modules(path, package)}
        names |= {name.rpartition(".")[0] for name in names}
        own = {module, module.rpartition(".")[0], package.name}  # packages through which a file is named
        graph[module] = names & set(modules) - own
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_room_imports_only_from_those_below() -> None:
    assert violations(PACKAGE) == []


def test_every_room_of_the_order_exists() -> None:
    assert {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("__")} == set(ORDER)


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("losses/kd.py", "from ray_l4.learner.step import x", ["losses/kd.py:1: losses may not import learner"]),
        ("losses/kd.py", "import ray_l4.methods as m", ["losses/kd.py:1: losses may not import methods"]),
        ("losses/kd.py", "from ray_l4 import cli", ["losses/kd.py:1: losses may not import cli"]),
        ("losses/kd.py", "from ..cli import main", ["losses/kd.py:1: losses may not import cli"]),
        ("losses/kd.py", "from .. import cli", ["losses/kd.py:1: losses may not import cli"]),
        ("losses/kd.py", "def f():\n    import ray\n", ["losses/kd.py:2: losses may not import Ray"]),
        ("cli/main.py", "from ray.util import x", ["cli/main.py:1: cli may not import Ray"]),
        (
            "cli/main.py",
            "import analysis.command",
            ["cli/main.py:1: cli may not import analysis, which is not installed"],
        ),
        ("seeds.py", "import ray_l4.errors", ["seeds.py:1: seeds may not import errors"]),
        ("other/x.py", "", ["other/x.py: room 'other' is not in the order"]),
        ("learner/step.py", "from . import a\nfrom .b import c\nfrom ray_l4.losses import d\nimport raylike", []),
        ("losses/kd.py", "from ray_l4 import __version__", []),
        ("cluster/x.py", "import ray\nfrom ray.actor import y\nfrom ray_l4 import errors, seeds", []),
        ("__init__.py", "import importlib", []),
    ],
)
def test_the_check_sees_what_it_should(tmp_path: Path, file: str, source: str, expected: list[str]) -> None:
    path = tmp_path / "ray_l4" / file
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    assert violations(tmp_path / "ray_l4") == expected


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle(PACKAGE) == []


@pytest.mark.parametrize(("last", "found"), [("from ray_l4.learner import a", True), ("import ray_l4.errors", False)])
def test_a_circle_is_found(tmp_path: Path, last: str, found: bool) -> None:
    package = tmp_path / "ray_l4"
    (package / "learner").mkdir(parents=True)
    (package / "errors.py").touch()
    (package / "learner" / "a.py").write_text("def f():\n    from ray_l4.learner.b import x\n", encoding="utf-8")
    (package / "learner" / "b.py").write_text(f"if TYPE_CHECKING:\n    {last}\n", encoding="utf-8")
    assert bool(circle(package)) == found
