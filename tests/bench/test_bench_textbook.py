"""A student's step compared with the yardstick that shares no code with it."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch

from ray_l4.bench.textbook import TextbookExample, TextbookL4, TextbookSettings
from ray_l4.learner.stage_run import StageRun
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import learner_fixtures as small
from tests.learner.architectures import GPT2, untrained

CURRENT, BATCH = 8, 5
REPLAYED = {"none": 0, "some": 7}


def settings(tok: TaskTokenizer) -> TextbookSettings:
    return TextbookSettings(pad=tok.pad, eos=tok.eos, answer_token=tok.ans, lr=1e-3, eps=1e-4)


def begun(replayed: int, max_grad_norm: float = 1e9, micro_batch: int | None = None) -> list[StageRun]:
    """Begin a stage of two students that differ."""
    shape = {"layers": 2, "width": 32, "heads": 2, "positions": 64, "dropout": 0.0}
    config = small.experiment(
        model={"from_scratch": shape},
        training={"epochs": 2, "batch_size": BATCH, "max_grad_norm": max_grad_norm},
        optim={"variant": "torch", "lr": 1e-3, "eps": 1e-4},
        peers={"init": "own"},
    )
    tok = small.tokenizer()
    learners = small.unlike(small.peers(config, tok))
    for own in learners:
        own.micro_batch = micro_batch
    return small.begun(learners, small.tokens(tok, CURRENT, replayed))


def examples(run: StageRun, step: int) -> list[TextbookExample]:
    """Return the examples of a step as the yardstick takes them."""
    rows = run.tokens.take(run.sampler.indices(step)).to_pylist()
    return [
        TextbookExample(row["ids"], row["prompt_length"], row["gen"], current=row["origin"] == "real") for row in rows
    ]


def yardstick(runs: list[StageRun]) -> TextbookL4:
    """Return the yardstick with copies of the students, whose attention is Transformers' own."""
    models = [copy.deepcopy(run.learner.model) for run in runs]
    for model in models:
        model.set_attn_implementation("sdpa")
    return TextbookL4(models, settings(runs[0].learner.tokenizer))


def assert_close(mine: torch.Tensor, theirs: torch.Tensor, allowed: float, name: str) -> None:
    assert float((mine - theirs).abs().max()) <= allowed, name


@pytest.mark.parametrize("replayed", REPLAYED)
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_gradients_equal_those_of_the_yardstick(replayed: str, micro_batch: int | None) -> None:
    runs = begun(REPLAYED[replayed], micro_batch=micro_batch)
    twin = yardstick(runs)
    given = examples(runs[0], 0)
    assert {own.current for own in given} == ({True} if replayed == "none" else {True, False})
    recorded = [small.record_gradients(run) for run in runs]
    (figures,) = small.train(runs, dict.fromkeys((0, 1), range(1)))
    losses = twin.gradients(given)
    for student, model in enumerate(twin.models):
        assert figures[student]["loss"] == pytest.approx(losses[student].item(), rel=1e-5)
        (mine,) = recorded[student]
        expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert mine.keys() == expected.keys()
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        for name, gradient in expected.items():
            # Some entries are 0 but for rounding, such as those of the keys' bias: compare with the largest of all.
            assert_close(mine[name], gradient, 1e-5 * max(float(gradient.abs().max()), 1e-2 * largest), name)


def test_students_that_learn_stay_with_the_yardstick() -> None:
    """Clipping, the optimiser and its two groups included."""
    runs = begun(REPLAYED["some"], max_grad_norm=1.0)
    twin = yardstick(runs)
    before = copy.deepcopy(twin.models)
    steps = range(runs[0].num_steps)
    by_step = small.train(runs, dict.fromkeys((0, 1), steps))
    for step in steps:
        for optimizer in twin.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = runs[0].rate(step)
        losses = twin.step(examples(runs[0], step))
        for student, loss in enumerate(losses):
            assert by_step[step][student]["loss"] == pytest.approx(loss, rel=1e-4)
        assert any(by_step[step][student]["grad_norm"] > 1 for student in (0, 1)), "gradients are clipped"
    for run, model, old in zip(runs, twin.models, before, strict=True):
        pairs = zip(*(own.state_dict().values() for own in (run.learner.model, model, old)), strict=True)
        distances = torch.tensor([[float((m - t).norm()), float((t - b).norm())] for m, t, b in pairs]).norm(dim=0)
        assert float(distances[0]) < 1e-4 * float(distances[1])


def textbook(count: int = 2) -> TextbookL4:
    models = [untrained(GPT2, seed) for seed in range(count)]
    for model in models:
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(20)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    return TextbookL4(models, TextbookSettings(pad=0, eos=2, answer_token=5))


EXAMPLES = [
    TextbookExample([9, 8, 5, 7, 6], 3, 10, current=True),
    TextbookExample([9, 5, 4], 2, 11, current=False),
]


def softmax_loss(logits: torch.Tensor, target: int) -> torch.Tensor:
    return logits.logsumexp(-1) - logits[target]


def test_the_yardsticks_loss_is_that_of_the_paper() -> None:
    """Worked out position by position: weighted labels, and the divergence at positions of current examples."""
    twin = textbook()
    (student, teacher), own = twin.models, twin.settings
    found = [loss.item() for loss in twin.gradients(EXAMPLES)]
    total = 0.0
    for head, weight in (("qa", 1.0), ("lm", own.lm_weight)):
        labels, divergences = [], []
        for example in EXAMPLES:
            ids = list(example.ids)
            if head == "qa":
                inputs, first, targets = ids, example.prompt_length - 1, [*ids[example.prompt_length :], own.eos]
            else:
                inputs, first, targets = [example.task_token, *ids], 0, [*ids, own.eos]
            logits, theirs = (model(torch.tensor([inputs])).logits[0].detach().double() for model in (student, teacher))
            for at, target in enumerate(targets, start=first):
                labels.append((own.answer_token_weight if target == 5 else 1.0, softmax_loss(logits[at], target)))
                if example.current:
                    p, q = (softened(z[at], own.temperature) for z in (theirs, logits))
                    divergences.append((p * (p / q).log()).sum())
        mean = sum(w * float(loss) for w, loss in labels) / sum(w for w, _ in labels)
        divergence = own.temperature**2 * float(torch.stack(divergences).mean())
        total += weight * (mean + own.kd_weight * divergence)
    assert found[0] == pytest.approx(total, rel=1e-5)


def softened(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return (logits / temperature).softmax(-1)


def test_a_batch_of_replayed_examples_bears_labels_only() -> None:
    apart, together = textbook(), textbook()
    together.models[1].load_state_dict(together.models[0].state_dict())
    replayed: list[Any] = [EXAMPLES[1]]
    assert apart.gradients(replayed)[0].item() == pytest.approx(together.gradients(replayed)[0].item(), rel=1e-6)
    assert apart.gradients(EXAMPLES)[0].item() != pytest.approx(together.gradients(EXAMPLES)[0].item(), rel=1e-3)


def test_biases_do_not_decay_and_gradients_are_cleared() -> None:
    twin = textbook()
    decayed, plain = twin.optimizers[0].param_groups
    names = {id(own): name for name, own in twin.models[0].named_parameters()}
    assert decayed["weight_decay"] == twin.settings.weight_decay and plain["weight_decay"] == 0.0
    assert not any("bias" in names[id(own)] for own in decayed["params"])
    assert all("bias" in names[id(own)] for own in plain["params"])
    losses = [twin.step(EXAMPLES) for _ in range(3)]
    assert all(later[0] < earlier[0] for earlier, later in pairwise(losses))
    assert all(p.grad is None for model in twin.models for p in model.parameters())
