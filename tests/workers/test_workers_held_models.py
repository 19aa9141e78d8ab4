"""The models of an evaluator: how often weights are loaded and models built, and how many are held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from ray_l4.config.model import FromScratch, ModelConfig
from ray_l4.errors import ModelError
from ray_l4.learner.models import build_model, describe, to_bytes
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.workers import held_models
from ray_l4.workers.held_models import HeldModels, Wanted
from tests.learner import learner_fixtures as small

WIDTHS = (16, 16, 16, 24, 24)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tok() -> TaskTokenizer:
    return small.tokenizer()


@pytest.fixture(scope="module")
def models(tok: TaskTokenizer) -> list[tuple[Wanted, PreTrainedModel]]:
    """Three checkpoints of one architecture and two of another, each with its model."""
    found = []
    for seed, width in enumerate(WIDTHS):
        config = ModelConfig(from_scratch=FromScratch(layers=1, width=width, heads=2, positions=64, vocabulary=300))
        model = build_model(config, tok, seed)
        found.append((Wanted(f"stage-0.student-{seed}", config, describe(model), to_bytes(model)), model))
    return found


class Counted:
    """Counts what is built and loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.built = self.loaded = 0
        monkeypatch.setattr(held_models, "blank_model", self._counting("built", held_models.blank_model))
        monkeypatch.setattr(held_models, "load_bytes", self._counting("loaded", held_models.load_bytes))

    def _counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            setattr(self, name, getattr(self, name) + 1)
            return function(*given, **named)

        return counted


def same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)


def test_one_model_serves_students_in_turn(
    tok: TaskTokenizer, models: Sequence[tuple[Wanted, PreTrainedModel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, held = Counted(monkeypatch), HeldModels(tok, CPU)
    for index in (0, 0, 1, 1, 0, 3):
        (model,) = held.load([models[index][0]])
        assert same(model, models[index][1]) and not model.training
        assert str(held) == f"stage-0.student-{index}", "no more than one is held"
    assert (count.built, count.loaded) == (2, 4)


def test_several_stay_for_the_next_call(
    tok: TaskTokenizer, models: Sequence[tuple[Wanted, PreTrainedModel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, held = Counted(monkeypatch), HeldModels(tok, CPU)
    wanted = [models[index][0] for index in (0, 3, 1)]
    for _ in range(3):
        held.load(wanted)
    assert (count.built, count.loaded) == (3, 3)
    held.load([models[3][0]])
    assert count.loaded == 3, "a single student's jobs between them load nothing that is there"
    held.load([models[2][0]])
    held.load(wanted)
    assert (count.built, count.loaded) == (3, 5)


def test_weights_of_the_same_name_may_differ(
    tok: TaskTokenizer, models: Sequence[tuple[Wanted, PreTrainedModel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, held = Counted(monkeypatch), HeldModels(tok, CPU)
    wanted = [models[0][0], models[1][0]]
    held.load(wanted)
    held.forget()
    assert str(held) == ""
    held.load(wanted)
    assert (count.built, count.loaded) == (2, 4)


def test_weights_that_cannot_be_loaded_leave_no_valid_checkpoint(
    tok: TaskTokenizer, models: Sequence[tuple[Wanted, PreTrainedModel]]
) -> None:
    held = HeldModels(tok, CPU)
    good = models[0][0]
    held.load([good])
    with pytest.raises(ModelError, match="damaged"):
        held.load([Wanted("broken", good.settings, good.description, good.weights[:50])])
    assert str(held) == ""
    (model,) = held.load([good])
    assert same(model, models[0][1])


@settings(max_examples=25)
@given(data=st.data())
def test_every_call_gets_its_models(
    tok: TaskTokenizer, models: Sequence[tuple[Wanted, PreTrainedModel]], data: st.DataObject
) -> None:
    """In whatever order calls come, also where one checkpoint is described in two ways."""
    held, most = HeldModels(tok, CPU), 0
    orders = st.lists(st.integers(0, len(WIDTHS) - 1), min_size=1, max_size=3, unique=True)
    for order in data.draw(st.lists(orders, min_size=1, max_size=6)):
        wanted = [models[index][0] for index in order]
        if data.draw(st.booleans()):
            wanted = [Wanted(w.checkpoint, w.settings, {**w.description, "read": 1}, w.weights) for w in wanted]
        found = held.load(wanted)
        assert all(same(model, models[index][1]) for model, index in zip(found, order, strict=True))
        assert len({id(model) for model in found}) == len(order)
        most = max(most, len(order))
        assert len(held._held) <= most
