"""Answers that students give themselves, and what they learn there: compared with plain models."""

from __future__ import annotations

import copy
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor

from ray_l4.errors import PeerError
from ray_l4.exchange.codecs import Payload
from ray_l4.learner.learner import Learner
from ray_l4.learner.repeated_step import RepeatedStep
from ray_l4.learner.stage_run import StageRun
from ray_l4.methods import get_method, resolved
from ray_l4.text.demonstration import demonstrated
from ray_l4.workers.failed_step import failed_step
from tests.learner import learner_fixtures as small
from tests.learner.plain_objective import Rule, divergence, plain_head, plain_objective

SHAPE = {"layers": 1, "width": 32, "heads": 2, "positions": 160, "dropout": 0.0}


def config(method: str = "l4-onpolicy", **distillation: Any) -> Any:
    return resolved(
        small.experiment(
            method=method,
            model={"from_scratch": SHAPE},
            training={"epochs": 4, "batch_size": 4, "max_grad_norm": 1e9},
            distillation=distillation,
            peers={"init": "own"},
        )
    )


def begun(
    experiment: Any, count: int | None = None, replayed: int = 3, micro_batch: int | None = None
) -> list[StageRun]:
    """Begin a stage with peers whose answers are neither empty nor all alike."""
    tok = small.tokenizer()
    learners = small.unlike(small.peers(experiment, tok, experiment.method, count))
    if micro_batch:
        learners = [
            Learner(own.peer, own.model, tok, own.experiment, own.method, micro_batch=micro_batch) for own in learners
        ]
    return small.begun(learners, small.tokens(tok, current=8, replayed=replayed))


def as_real(answered: pa.Table) -> list[dict[str, Any]]:
    return [row | {"origin": "real"} for row in answered.to_pylist()]


def rows_of(run: StageRun, step: int) -> list[dict[str, Any]]:
    return run.tokens.take(pa.array(run.sampler.indices(step))).to_pylist()


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("batches", ["shared", "own"])
@pytest.mark.parametrize("direction", ["forward", "reverse", 0.5])
def test_gradients_equal_those_of_plain_models(count: int, batches: str, direction: Any) -> None:
    """Labels on the given answers, both heads; the divergence on the student's own answers alone."""
    runs = begun(config(batches=batches, direction=direction, weight=3.0, temperature=1.5), count)
    answers = [run.answer(0) for run in runs]
    before = [copy.deepcopy(run.learner.model) for run in runs]
    recorded = [small.record_gradients(run) for run in runs]
    (figures,) = small.train(runs, dict.fromkeys(range(count), range(1)))
    rule = Rule(weight=3.0, temperature=1.5, direction=direction, labels_on_current=False)
    for peer, run in enumerate(runs):
        teachers = [copy.deepcopy(own) for other, own in enumerate(before) if other != peer]
        tok, own_answers = run.learner.tokenizer, answers[peer]
        assert own_answers is not None
        labels, expected = plain_objective(before[peer], [], rows_of(run, 0), tok, Rule(), ("qa", "lm"))
        taught, _, distance = plain_head(before[peer], teachers, as_real(own_answers), tok, "qa", rule)
        (labels + taught).backward()
        assert figures[peer]["nll_qa"] == pytest.approx(expected["nll_qa"], rel=1e-5)
        assert figures[peer]["kd_qa"] == pytest.approx(distance.item(), rel=1e-4, abs=1e-6)
        assert figures[peer]["kd_lm"] == 0.0
        assert figures[peer]["loss"] == pytest.approx((labels + taught).item(), rel=1e-5)
        small.assert_same_gradients(recorded[peer][0], before[peer])


def plain_demonstrated(run: StageRun, student: Any, teacher: Any, answered: pa.Table, given: pa.Table) -> Tensor:
    """The reverse divergence, each answer's positions found from the end of a prompt put together by hand."""
    tok = run.learner.tokenizer
    before = tok.encode("Here is an example of an answer to the question:")
    after = tok.encode("Now give an answer of your own.")
    rule, distances = Rule(temperature=1.0, direction="reverse"), []
    for own, shown in zip(answered.to_pylist(), given.to_pylist(), strict=True):
        start = own["prompt_length"]
        asked, answer, example = own["ids"][: start - 1], own["ids"][start:], shown["ids"][start:]
        prompt = [*asked, *before, *example, *after, tok.ans]
        mine = student(input_ids=torch.tensor([own["ids"]])).logits[0][start - 1 :]
        with torch.no_grad():
            theirs = teacher(input_ids=torch.tensor([prompt + answer])).logits[0][len(prompt) - 1 :]
        assert len(mine) == len(theirs) == len(answer) + 1
        distances += [divergence([t], m, rule) for t, m in zip(theirs, mine, strict=True)]
    return torch.stack(distances).mean()


def test_a_demonstration_changes_what_the_teacher_predicts_and_gradients_equal_a_plain_model_s() -> None:
    student, teacher = begun(config("sdft"), replayed=0)
    answered = student.answer(0)
    assert answered is not None
    given = student._steps.current_examples(0, 0)
    plain = copy.deepcopy(student.learner.model)
    gradients = small.record_gradients(student)
    (figures,) = small.train([student, teacher], {0: range(1)})
    loss = plain_demonstrated(student, plain, teacher.learner.model, answered, given)
    loss.backward()
    assert figures[0]["loss"] == figures[0]["kd_qa"] == pytest.approx(loss.item(), rel=1e-5)
    assert figures[0]["nll_qa"] == 0.0, "no labels"
    small.assert_same_gradients(gradients[0], plain)


def test_a_demonstration_shows_the_given_answer_and_a_long_prompt_loses_its_beginning() -> None:
    tok = small.tokenizer()
    run = begun(config("sdft"))[0]
    answered, given = run.answer(0), run._steps.current_examples(0, 0)
    assert answered is not None
    whole = demonstrated(answered, given, tok, None).to_pylist()
    short = demonstrated(answered, given, tok, 40).to_pylist()
    for own, shown, full, cut in zip(answered.to_pylist(), given.to_pylist(), whole, short, strict=True):
        answer = own["ids"][own["prompt_length"] :]
        prompt = full["ids"][: full["prompt_length"]]
        assert full["ids"][full["prompt_length"] :] == cut["ids"][cut["prompt_length"] :] == answer
        text, example = tok.decode(prompt), tok.decode(shown["ids"][shown["prompt_length"] :])
        assert f"answer to the question: {example.strip()} Now give an answer of your own." in " ".join(text.split())
        assert prompt[-1] == tok.ans
        assert full["ids"][-len(cut["ids"]) :] == cut["ids"]
        assert len(cut["ids"]) < 40


def test_answers_follow_from_the_seed_and_the_student_alone() -> None:
    runs = begun(config())
    run = runs[0]
    first = run.answer(0)
    run.learner.model.train()
    torch.rand(3)
    assert first is not None and first.equals(run.answer(0)), "whatever was drawn in between"
    assert run.learner.model.training
    other, later = runs[1].answer(0), run.answer(1)
    assert other is not None and later is not None
    assert first["ids"].to_pylist() != other["ids"].to_pylist()
    assert pc.all(pc.equal(first["origin"], "answered")).as_py()
    for table in (first, later):
        lengths = pc.list_value_length(table["ids"]).to_numpy() - table["prompt_length"].to_numpy()
        assert 0 < lengths.max() <= run._steps.longest_answer


def test_an_answer_ends_where_the_model_has_no_more_positions() -> None:
    run = begun(config())[0]
    run.learner.model.config.max_position_embeddings = longest = int(run.tokens["prompt_length"].to_numpy().max()) + 1
    answered = run.answer(0)
    assert answered is not None
    assert pc.max(pc.list_value_length(answered["ids"])).as_py() <= longest


def test_the_steps_with_own_answers_are_a_share_and_the_same_for_all_students() -> None:
    runs = begun(config(on_policy=0.5))
    chosen = [[run.answer(step) is not None for step in range(run.num_steps)] for run in runs]
    assert chosen[0] == chosen[1]
    assert 0 < sum(chosen[0]) < len(chosen[0])
    step = chosen[0].index(False)
    before = [copy.deepcopy(run.learner.model) for run in runs]
    for run in runs:
        run._next_step = step
    (figures,) = small.train(runs, dict.fromkeys((0, 1), range(step, step + 1)))
    rule = Rule(weight=1.0, temperature=1.0, direction=0.5)
    loss, _ = plain_objective(
        before[0], [before[1]], rows_of(runs[0], step), runs[0].learner.tokenizer, rule, ("qa", "lm")
    )
    assert figures[0]["loss"] == pytest.approx(loss.item(), rel=1e-5), "with the given answers, both heads"


def test_a_batch_of_replayed_examples_alone_has_no_own_answers() -> None:
    tok = small.tokenizer()
    run = small.begun(small.peers(config(), tok), small.replay_alone(tok, 4))[0]
    assert run.answer(0) is None


@pytest.mark.parametrize("method", ["l4-onpolicy", "sdft"])
def test_micro_batches_give_the_same(method: str) -> None:
    whole, parts = begun(config(method)), begun(config(method), micro_batch=1)
    learning = [run.learner.peer for run in whole if method != "sdft" or run.learner.peer == 0]
    one, other = (small.train(runs, dict.fromkeys(learning, range(2))) for runs in (whole, parts))
    for expected, found in zip(one, other, strict=True):
        for peer in learning:
            for name in ("loss", "kd_qa", "grad_norm", "tokens"):
                assert found[peer][name] == pytest.approx(expected[peer][name], rel=2e-4), name


def test_bfloat16_products_stay_near_float32() -> None:
    losses: list[float] = []
    answered = begun(config())[0].answer(0)
    for precision in ("float32", "bfloat16"):
        experiment = config()
        model = experiment.model.model_copy(update={"precision": precision})
        runs = begun(experiment.model_copy(update={"model": model}))
        for run in runs:
            run.answer = lambda step: answered
        losses.append(small.train(runs, dict.fromkeys((0, 1), range(1)))[0][0]["kd_qa"])
    assert losses[1] == pytest.approx(losses[0], rel=5e-2)


def test_a_failed_step_is_repeated_with_the_answers_of_that_step() -> None:
    mine, other = begun(config())
    weights = copy.deepcopy(mine.learner.model.state_dict())
    mine.forward(0, publish=False)
    answered = mine.answered
    targets = other.predict(0, 0, answered).targets()
    kept = failed_step(mine, [Payload()])
    expected = mine.backward(0, [targets])
    mine.learner.model.load_state_dict(weights)
    again = RepeatedStep(mine.learner, 1, 0, kept.batch, None)
    found = again.repeat([targets])
    assert found.figures["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert {head for _, head, _, _ in found.losses} == {"qa", "lm", "own"}


def test_a_teacher_s_predictions_of_other_answers_are_refused() -> None:
    mine, other = begun(config())
    mine.forward(0, publish=False)
    with pytest.raises(PeerError, match=r"a teacher predicted \d+ positions of head qa; expected 0"):
        mine.backward(0, [other.predict(0, 0).targets()])


def test_the_rows_that_answer_themselves() -> None:
    for name in ("l4-onpolicy", "sdft"):
        assert dict(get_method(name).settings)["distillation.on_policy"] == 1.0
        assert resolved(small.experiment(method=name)).distillation.asks_teachers
