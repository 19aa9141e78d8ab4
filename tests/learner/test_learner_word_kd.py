"""Word-KD with stage runs, compared with a plain loop over examples and positions.

Source: REFERENCE.md#word-kd-loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from ray_l4.learner.stage_run import StageRun
from ray_l4.methods import resolved
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import learner_fixtures as small

TEMPERATURE, LM_WEIGHT, ANS_WEIGHT = 2.0, 0.25, 5.0
BATCHES = {
    "current alone": lambda tok: small.tokens(tok, current=4, replayed=0),
    "mixed": lambda tok: small.tokens(tok, current=3, replayed=2),
    "replay alone": lambda tok: small.replay_alone(tok, 3),
}
"""Tables that fit into one batch."""


# --- the plain implementation


def answer_sequence(row: dict[str, Any], tok: TaskTokenizer) -> tuple[list[int], list[int | None]]:
    """Return context, question, ANS and answer, with targets from ANS on; the last target is EOS."""
    ids, prompt = row["ids"], row["prompt_length"]
    return ids, [None] * (prompt - 1) + ids[prompt:] + [tok.eos]


def whole_sequence(row: dict[str, Any], tok: TaskTokenizer) -> tuple[list[int], list[int | None]]:
    """Return the same sequence after the task's token, with a target at every position."""
    return [row["gen"], *row["ids"]], [*row["ids"], tok.eos]


def plain_word_kd(student: Any, teacher: Any, rows: Sequence[dict[str, Any]], tok: TaskTokenizer) -> Tensor:
    """Return L2KD's loss: KD on current examples plus cross-entropy on pseudo-examples, each with its own mean."""
    loss = torch.zeros(())
    for sequence_of, head_weight in ((answer_sequence, 1.0), (whole_sequence, LM_WEIGHT)):
        kd_sum, kd_positions = torch.zeros(()), 0
        ce_sum, ce_weights = torch.zeros(()), 0.0
        for row in rows:
            inputs, targets = sequence_of(row, tok)
            logits = student(input_ids=torch.tensor([inputs])).logits[0]
            with torch.no_grad():
                teacher_logits = teacher(input_ids=torch.tensor([inputs])).logits[0]
            for position, target in enumerate(targets):
                if target is None:
                    continue
                if row["origin"] == "real":
                    p = (teacher_logits[position] / TEMPERATURE).softmax(-1)
                    log_q = (logits[position] / TEMPERATURE).log_softmax(-1)
                    kd_sum = kd_sum + (p * (p.log() - log_q)).sum()
                    kd_positions += 1
                else:
                    weight = ANS_WEIGHT if target == tok.ans else 1.0
                    ce_sum = ce_sum - weight * logits[position].log_softmax(-1)[target]
                    ce_weights += weight
        if kd_positions:
            loss = loss + head_weight * TEMPERATURE**2 * kd_sum / kd_positions
        if ce_weights:
            loss = loss + head_weight * ce_sum / ce_weights
    return loss


def plain_training(
    student: Any, teacher: Any, batches: Sequence[Sequence[dict[str, Any]]], tok: TaskTokenizer, config: Any
) -> list[float]:
    """Train with plain PyTorch, at a learning rate that falls linearly (REFERENCE.md#schedule); returns the losses."""
    decayed = [p for name, p in student.named_parameters() if "bias" not in name]
    others = [p for name, p in student.named_parameters() if "bias" in name]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, eps=config.optim.eps, weight_decay=config.optim.weight_decay)
    total, seen, losses = sum(map(len, batches)), 0, []
    for rows in batches:
        for group in optimizer.param_groups:
            group["lr"] = config.optim.lr * (total - seen) / total
        optimizer.zero_grad()
        loss = plain_word_kd(student, teacher, rows, tok)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), config.training.max_grad_norm)
        optimizer.step()
        seen += len(rows)
        losses.append(loss.item())
    return losses


# --- the same with stage runs


def experiment(precision: str = "float32", dropout: float = 0.0, **training: Any) -> Any:
    """Make an experiment with the method's own settings; the models start from different weights."""
    shape = {"layers": 2, "width": 32, "heads": 2, "positions": 64, "dropout": dropout}
    return resolved(
        small.experiment(
            method="l2kd-word",
            model={"from_scratch": shape, "precision": precision},
            training={"epochs": 3, "batch_size": 5} | training,
            # A large epsilon, so that noise in gradients near zero does not cause full-sized steps.
            optim={"variant": "torch", "lr": 1e-2, "eps": 1e-4},
            peers={"init": "own"},
        )
    )


def student_and_teacher(config: Any, table: pa.Table) -> tuple[StageRun, StageRun]:
    student, teacher = small.begun(small.unlike(small.peers(config, small.tokenizer(), "l2kd-word")), table)
    return student, teacher


@pytest.mark.parametrize("table_of", BATCHES.values(), ids=BATCHES)
def test_loss_and_all_gradients_equal_two_plain_models(table_of: Callable[[TaskTokenizer], pa.Table]) -> None:
    table = table_of(small.tokenizer())
    student, teacher = student_and_teacher(experiment(max_grad_norm=1e9), table)
    plain = copy.deepcopy(student.learner.model)
    gradients = small.record_gradients(student)
    ((figures,),) = [list(by_peer.values()) for by_peer in small.train([student, teacher], {0: range(1)})]
    rows = table.take(student.sampler.indices(0)).to_pylist()
    loss = plain_word_kd(plain, teacher.learner.model, rows, student.learner.tokenizer)
    loss.backward()
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert loss.item() > 0.1
    small.assert_same_gradients(gradients[0], plain, tolerance=1e-5)


def test_a_batch_of_replayed_examples_only_has_no_divergence() -> None:
    """In the reference implementation it is 0/0 (REFERENCE.md#word-kd-loss)."""
    table = small.replay_alone(small.tokenizer(), 3)
    student, teacher = student_and_teacher(experiment(), table)
    (figures,) = small.train([student, teacher], {0: range(1)})
    assert figures[0]["kd_qa"] == figures[0]["kd_lm"] == 0.0
    assert figures[0]["loss"] == pytest.approx(figures[0]["nll_qa"] + LM_WEIGHT * figures[0]["nll_lm"])
    assert all(parameter.isfinite().all() for parameter in student.learner.model.parameters())


def test_labels_of_current_examples_have_no_effect() -> None:
    table = small.tokens(small.tokenizer(), current=4, replayed=0)
    student, teacher = student_and_teacher(experiment(), table)
    (figures,) = small.train([student, teacher], {0: range(1)})
    assert figures[0]["nll_qa"] == figures[0]["nll_lm"] == 0.0
    assert figures[0]["kd_qa"] > 0


def test_bfloat16_differs_only_by_rounding() -> None:
    table = BATCHES["mixed"](small.tokenizer())
    student, teacher = student_and_teacher(experiment("bfloat16", max_grad_norm=1e9), table)
    plain = copy.deepcopy(student.learner.model)
    gradients = small.record_gradients(student)
    (figures,) = small.train([student, teacher], {0: range(1)})
    rows = table.take(student.sampler.indices(0)).to_pylist()
    loss = plain_word_kd(plain, teacher.learner.model, rows, student.learner.tokenizer)
    loss.backward()
    assert figures[0]["loss"] == pytest.approx(loss.item(), rel=2e-2)
    assert figures[0]["loss"] != pytest.approx(loss.item(), rel=1e-6), "was it bfloat16 at all?"
    assert small.cosine(gradients[0], plain) > 0.995


def test_three_steps_give_the_weights_of_a_plain_training_loop() -> None:
    table = small.tokens(small.tokenizer(), current=5, replayed=3)
    config = experiment()
    student, teacher = student_and_teacher(config, table)
    model, frozen = student.learner.model, copy.deepcopy(teacher.learner.model)
    start, plain = copy.deepcopy(model), copy.deepcopy(model)
    steps = range(student.num_steps)
    batches = [table.take(student.sampler.indices(step)).to_pylist() for step in steps]
    assert len(batches) == 6 and any(len({row["origin"] for row in rows}) == 2 for rows in batches)

    figures = small.train([student, teacher], {0: steps})
    losses = plain_training(plain, frozen, batches, student.learner.tokenizer, config)

    assert [by_peer[0]["loss"] for by_peer in figures] == pytest.approx(losses, rel=1e-5)
    before, expected = start.state_dict(), plain.state_dict()
    for name, weights in model.state_dict().items():
        assert (weights - expected[name]).norm() <= 1e-5 * expected[name].norm(), name
        assert (weights - before[name]).norm() >= 1e-4 * before[name].norm(), "the weights have moved"
    for before, after in zip(frozen.parameters(), teacher.learner.model.parameters(), strict=True):
        assert torch.equal(before, after), "the teacher has not"


def test_the_teacher_predicts_without_dropout_while_the_student_has_it() -> None:
    table = BATCHES["mixed"](small.tokenizer())
    student, teacher = student_and_teacher(experiment(dropout=0.5), table)
    calm = copy.deepcopy(teacher.learner.model).eval()
    (row,) = [row for row in table.take(student.sampler.indices(0)).to_pylist() if row["origin"] == "real"][:1]
    with torch.no_grad():
        inputs, targets = answer_sequence(row, student.learner.tokenizer)
        expected = calm(input_ids=torch.tensor([inputs])).logits[0].log_softmax(-1)
    bearing = [position for position, target in enumerate(targets) if target is not None]
    predicted = teacher.predict(0, 0).log_probs("qa")[: len(bearing)]
    torch.testing.assert_close(predicted, expected[bearing], rtol=1e-5, atol=1e-5)

    one, again = student.forward(0).log_probs("qa"), student.predict(0, 0).log_probs("qa")
    assert not torch.allclose(one, again, atol=1e-3), "the student's own step has dropout"


def test_predicting_has_no_side_effects() -> None:
    """Unchanged are the model's mode, the process's random numbers and the step under way."""
    table = BATCHES["mixed"](small.tokenizer())
    calm, disturbed = (student_and_teacher(experiment(dropout=0.5), table)[0] for _ in range(2))
    for student in (calm, disturbed):
        student.forward(0)
    before = torch.get_rng_state()
    disturbed.predict(1, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert disturbed.learner.model.training
    targets = calm.predict(0, 0).targets()
    assert calm.backward(0, [targets]) == disturbed.backward(0, [targets])
    pairs = zip(calm.learner.model.parameters(), disturbed.learner.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_students_that_share_a_teacher_learn_as_if_alone() -> None:
    """The teacher predicts a batch once for all students."""
    table = BATCHES["mixed"](small.tokenizer())
    config, tok = experiment(), small.tokenizer()
    together = small.begun(small.unlike(small.peers(config, tok, "l2kd-word", 2)), table)
    small.train(together, dict.fromkeys((0, 1), range(3)))

    _, alone, teacher = small.begun(small.unlike(small.peers(config, tok, "l2kd-word", 2)), table)
    for step in range(3):
        alone.forward(step)
        alone.backward(step, [teacher.predict(step, alone.learner.peer).targets()])
    pairs = zip(together[1].learner.model.parameters(), alone.learner.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
