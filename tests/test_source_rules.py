"""Rules that the source keeps: properties are asked by trait and not by name, and constructors stay narrow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_l4.config.traits import CODECS, TRANSPORTS
from ray_l4.methods.stages import STAGE_KINDS

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = [path for folder in ("ray_l4", "analysis") for path in sorted((REPOSITORY / folder).rglob("*.py"))]

NAMES_OF = {"codec": set(CODECS), "transport": set(TRANSPORTS), "stages": set(STAGE_KINDS)}
"""What each of these settings can be. Code asks for a trait or a kind instead of comparing with one of the names."""
MOST_PARAMETERS = 8


def name_of(node: ast.expr) -> str:
    """Return the last part of a name, an attribute or a key; an empty string for another expression."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name) | ast.Subscript(slice=ast.Constant(value=str(name))):
            return name
    return ""


def comparisons(tree: ast.AST) -> Iterator[int]:
    """Yield the line of every comparison of a setting with one of its names, or with several."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            words = {inner.value for side in sides for inner in ast.walk(side) if isinstance(inner, ast.Constant)}
            if any(words & NAMES_OF.get(name_of(side), set()) for side in sides):
                yield node.lineno


def wide_constructors(tree: ast.AST) -> Iterator[str]:
    """Yield every class whose constructor has, or whose fields without a default are, too many."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            own = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
            counts = [len([*init.args.posonlyargs, *init.args.args, *init.args.kwonlyargs]) - 1 for init in own]
            if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
                counts.append(sum(isinstance(part, ast.AnnAssign) and part.value is None for part in node.body))
            if max(counts, default=0) > MOST_PARAMETERS:
                yield node.name


def parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_no_setting_is_compared_with_a_name() -> None:
    assert [f"{path}:{line}" for path in SOURCES for line in comparisons(parsed(path))] == []


def test_no_constructor_takes_too_much() -> None:
    assert [f"{path}: {name}" for path in SOURCES for name in wide_constructors(parsed(path))] == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("exchange.codec == 'mean'", True),
        ("'cuda_ipc' != transport", True),
        ("row.stages in ('separate', 'union')", True),
        ("values['codec'] == 'sampled'", True),
        ("exchange.codec == other.codec", False),
        ("name == 'mean'", False),
        ("exchange.codec_traits.reduces", False),
    ],
)
def test_a_comparison_is_found(code: str, found: bool) -> None:
    assert bool([*comparisons(ast.parse(code))]) == found


@pytest.mark.parametrize("count", [MOST_PARAMETERS, MOST_PARAMETERS + 1])
def test_a_wide_constructor_is_found(count: int) -> None:
    names = [f"p{index}" for index in range(count)]
    plain = f"class A:\n    def __init__(self, {', '.join(names)}): ..."
    record = "@dataclass(frozen=True)\nclass A:\n    given: int = 0\n" + "".join(f"    {name}: int\n" for name in names)
    expected = ["A"] if count > MOST_PARAMETERS else []
    assert [*wide_constructors(ast.parse(plain))] == [*wide_constructors(ast.parse(record))] == expected


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
REQUIRED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
"""Calls that have to say so: none of them may run what is in a file."""


def runs_code(tree: ast.AST) -> Iterator[int]:
    """Yield the line of everything that could run code from a file or a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] in UNSAFE_MODULES for alias in node.names):
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            # Errors of libraries are caught.
            yield from (node.lineno for alias in node.names if not alias.name.endswith("Error"))
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).removeprefix("builtins.")
            given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            wanted = REQUIRED.get(called.replace("numpy.", "np."))
            allowed = any(word.arg == "trust_remote_code" and given[word.arg] is not False for word in node.keywords)
            if called in UNSAFE_CALLS or allowed or (wanted and given.get(wanted[0]) is not wanted[1]):
                yield node.lineno


def test_nothing_read_from_disk_is_run() -> None:
    assert len(SOURCES) > 100
    assert [f"{path}:{line}" for path in SOURCES for line in runs_code(parsed(path))] == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", True),
        ("import joblib.numpy_pickle as p", True),
        ("from pickle import loads", True),
        ("from pickle import UnpicklingError", False),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("safetensors.torch.load(data)", False),
        ("numpy.load(path)", True),
        ("np.load(path, allow_pickle=False)", False),
        ("yaml.load(text, Loader)", True),
        ("yaml.safe_load(text)", False),
        ("eval(text)", True),
        ("model.eval()", False),
        ("AutoConfig.from_pretrained(name, trust_remote_code=True)", True),
        ("AutoConfig.from_pretrained(name, trust_remote_code=False)", False),
    ],
)
def test_running_a_file_is_found(code: str, found: bool) -> None:
    assert bool([*runs_code(ast.parse(code))]) == found
