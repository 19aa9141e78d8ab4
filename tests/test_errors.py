"""Exception classes, and the hint for unknown names."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4 import errors
from ray_l4.errors import RayL4Error, nearest

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, Exception)]
words = st.text("abcdefghij-_.", min_size=1, max_size=10)


def test_all_exceptions_have_one_base_class() -> None:
    assert len(CLASSES) == 13
    assert all(issubclass(c, RayL4Error) for c in CLASSES)
    assert not issubclass(RayL4Error, OSError | ValueError), "a handler for those must not catch ours"


def test_every_kind_of_failure_has_its_own_exit_code() -> None:
    codes = {c.__name__: c.exit_code for c in CLASSES if c.__bases__[0] in (Exception, RayL4Error)}
    assert sorted(codes.values()) == [1, 2, 3, 4, 5, 6, 7]
    assert errors.PeerLostError.exit_code == errors.PeerError.exit_code, "one kind of failure, seen by the coordinator"
    assert codes["ConfigError"] == 2, "the usual exit code for invalid arguments"


@pytest.mark.parametrize("kind", CLASSES)
def test_the_message_is_unchanged(kind: type[RayL4Error]) -> None:
    assert str(kind("data.yaml, line 3: no such key")) == "data.yaml, line 3: no such key"


def test_nearest_returns_the_closest_name() -> None:
    assert nearest("epoch", ["epochs", "batch_size", "seed"]) == "Did you mean 'epochs'?"


def test_nearest_lists_all_names_if_none_is_close() -> None:
    assert nearest("xyz", ["lamol", "finetune"]) == "Known: finetune, lamol."


def test_nearest_without_known_names() -> None:
    assert nearest("anything", [], "table.csv has no columns.") == "table.csv has no columns."
    assert nearest("anything", []) == "No other name is known either.", "never an empty hint"


@given(words, st.sets(words, max_size=6))
def test_nearest_returns_only_known_names(name: str, known: set[str]) -> None:
    hint = nearest(name, known)
    if hint.startswith("Did you mean"):
        assert hint.removeprefix("Did you mean '").removesuffix("'?") in known
    elif known:
        assert hint == f"Known: {', '.join(sorted(known))}."
    else:
        assert hint == "No other name is known either."


@given(words, st.sets(words, max_size=6))
def test_a_known_name_is_closest_to_itself(name: str, others: set[str]) -> None:
    assert nearest(name, {name, *others}) == f"Did you mean {name!r}?"


@given(st.lists(words, unique=True, max_size=6).flatmap(lambda x: st.tuples(st.just(x), st.permutations(x))))
def test_the_hint_does_not_depend_on_the_order_of_names(orders: tuple[list[str], list[str]]) -> None:
    assert nearest("abc", orders[0]) == nearest("abc", orders[1])
