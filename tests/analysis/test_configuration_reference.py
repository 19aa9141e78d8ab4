"""The reference of settings is complete and readable, and the committed page is up to date."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, Field

from analysis import configuration_reference
from analysis.configuration_reference import PARTS, render
from ray_l4.config.fields import Strict

REPOSITORY = Path(__file__).resolve().parents[2]
COMMITTED = REPOSITORY / "docs" / "CONFIGURATION.md"


class Inner(Strict):
    """A group (REFERENCE.md#data-schema)
    over two lines."""

    flag: bool = False
    """Takes ``x|y``."""


class Outer(Strict):
    """All kinds of keys."""

    text: str
    """Needed."""
    path: Path | None = None
    """May be left out (REFERENCE.md#tokeniser, #assembly)."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Bounded."""
    size: Annotated[int, Field(ge=1)] | Literal["auto", "all"] = "auto"
    """Number or word."""
    fixed: Literal["only"] = "only"
    """One word."""
    inner: Inner = Inner()
    """A group."""
    maybe: Inner | None = None
    """A group that may be left out."""
    many: Annotated[list[Inner], Field(min_length=1)]
    """A list of groups."""
    names: list[str] | None = None
    """Texts."""
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Free keys."""


def rendered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the lines of the page of ``Outer``, without the header."""
    monkeypatch.setattr(configuration_reference, "PARTS", (("Things", "x.", Outer),))
    return render().removeprefix(configuration_reference.HEADER).splitlines()


def keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield all keys of a model and of the models within it, from its annotations rather than its schema."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner, is_list in models_in(field.annotation):
            yield from keys(inner, f"{prefix}{name}.{'N.' if is_list else ''}")


def models_in(annotation: Any, is_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, is_list
    elif get_origin(annotation) in (list, Annotated, Union, types.UnionType):
        for argument in get_args(annotation):
            yield from models_in(argument, is_list or get_origin(annotation) is list)


def test_the_committed_page_is_up_to_date() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == render(), (
        "run: python -m analysis.configuration_reference > docs/CONFIGURATION.md"
    )


def test_every_key_has_one_row_with_a_meaning() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.*?) \| (.+) \|$", render(), flags=re.MULTILINE)
    expected = sorted(key for _, prefix, model in PARTS for key in keys(model, prefix))
    assert sorted(key for key, _, _, _ in rows) == expected
    assert {"training.epochs", "stream.N.columns.id", "cluster.evaluators.gpus"} <= set(expected)
    assert all(meaning.endswith((".", ".)")) for *_, meaning in rows)


def test_kinds_of_values_and_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = rendered(monkeypatch)
    for row in (
        "| `x.text` | text | required | Needed. |",
        "| `x.path` | path | – | May be left out. |",
        "| `x.share` | number > 0 and ≤ 1 | `0.5` | Bounded. |",
        "| `x.size` | whole number ≥ 1 or `auto` or `all` | `auto` | Number or word. |",
        "| `x.fixed` | `only` | `only` | One word. |",
        "| `x.inner` | see `x.inner.*` |  | A group. |",
        "| `x.maybe` | see `x.maybe.*` | – | A group that may be left out. |",
        "| `x.many` | see `x.many.N.*` | required | A list of groups. |",
        "| `x.names` | list of: text | – | Texts. |",
        "| `x.grid` | names, each with: list | – | Free keys. |",
        r"| `x.many.N.flag` | `true` or `false` | `false` | Takes `x\|y`. |",
    ):
        assert row in lines, row


def test_every_group_has_a_heading_and_its_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = rendered(monkeypatch)
    headings = [line for line in lines if line.startswith("#")]
    assert headings == ["## Things", "### `x.inner.*`", "### `x.maybe.*`", "### `x.many.N.*`"]
    assert lines[lines.index("### `x.inner.*`") + 2] == "A group over two lines."


def test_the_command_prints_the_page() -> None:
    command = [sys.executable, "-m", "analysis.configuration_reference"]
    printed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True, timeout=120).stdout
    assert printed.decode("utf-8") == render()
