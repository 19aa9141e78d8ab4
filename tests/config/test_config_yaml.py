"""Strict YAML: accepted and refused input, positions in messages, and round trips."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.strict_yaml import dump, line_of, parse
from ray_l4.errors import ConfigError

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=12
)


@given(st.dictionaries(st.text(), trees, max_size=4))
def test_written_data_is_read_back_unchanged(data: dict) -> None:
    assert parse(dump(data), "x")[0] == data


@given(st.from_regex(r"[-+0-9._eE:infabtruesoy~]{1,8}", fullmatch=True))
def test_text_that_looks_like_another_type_stays_text(text: str) -> None:
    data = {"key": text}
    assert parse(dump(data), "x")[0] == data
    assert yaml.safe_load(dump(data)) == data  # other programs read it as text too


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-3", 2e-3),
        ("1.5E3", 1500.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("500_000", 500_000),
        ("-7", -7),
        ("true", True),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("010", "010"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("9" * 5000, "9" * 5000),
        ("'5'", "5"),
        ("host:6379", "host:6379"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert parse(f"key: {text}", "x")[0] == {"key": value}
    assert type(parse(f"key: {text}", "x")[0]["key"]) is type(value)  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\n", "f:3:1: not valid YAML: expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", "f:2:1: not valid YAML: found character '\\t'"),
        ("a: 1\nb: 2\na: 3\n", "f:3:1: not valid YAML: key 'a' appears twice (first in line 1)"),
        ("x:\n  - {a: 1, a: 2}\n", "f:2:12: not valid YAML: key 'a' appears twice (first in line 2)"),
        ("1: x\n", "f:1:1: not valid YAML: a key must be text"),
        ("? [a]\n: x\n", "f:1:3: not valid YAML: a key must be text"),
        ("a: &b 1\nc: *b\n", "f:2:4: not valid YAML: aliases (*x) and tags (!x) are not supported"),
        ("a: !!python/name:os.system\n", "f:1:4: not valid YAML: aliases (*x) and tags (!x)"),
        ("a: 1\n---\nb: 1\n", "f:2:1: not valid YAML"),
        ("a: 1\nb: \x07\n", "f:2: character 0x7 is not allowed in YAML"),
        ("[" * 5000, "f: nested too deeply to be read"),
    ],
)
def test_refused_input_and_its_position(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_line_of_the_closest_existing_value() -> None:
    _, node = parse("# comment\na:\n  b: 1\n  c:\n    - x\n    - y\n", "f")
    locations = [("a",), ("a", "b"), ("a", "c", 1), ("a", "c", 7), ("a", "missing"), ("a", "b", "c"), ("z",), ()]
    assert [line_of(node, location) for location in locations] == [2, 3, 6, 4, 2, 3, None, None]


def test_empty_text_has_no_value() -> None:
    assert parse("# only a comment\n", "f") == (None, None)
    assert parse("\ufeffa: 1\n", "f")[0] == {"a": 1}  # a byte order mark is not part of the first key
