"""Batches, compared with a plain twin that builds one sequence at a time (REFERENCE.md#assembly, #lamol-loss)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.text.batches import Batch, build_batch
from ray_l4.text.heads import Head
from ray_l4.text.tokens import concatenated, tokens_table

IGNORE = -1
C, Q, A, GEN = (11, 12, 13), (21, 22), (31, 32), 9


@dataclass(frozen=True)
class Ids:
    ans: int = 1
    pad: int = 2
    eos: int = 3
    lm_start: tuple[int, ...] = ()
    lm_end: tuple[int, ...] = (3,)


IDS = Ids()
HEADS: tuple[Head, ...] = ("qa", "lm")


def table(*rows: tuple[list[int], list[int]], origin: Any = "real", gen: int = GEN) -> pa.Table:
    """Build a TOKENS table from pairs of ids (context and question, answer)."""
    number = len(rows)
    ids = [[*prompt, IDS.ans, *answer] for prompt, answer in rows]
    names = [f"{origin}-{i}" for i in range(number)]
    return tokens_table(ids, [len(p) + 1 for p, _ in rows], [gen] * number, ["t"] * number, names, origin)


def twin(row: dict[str, Any], head: Head) -> tuple[list[int], list[int]]:
    """Build X and Y literally as in REFERENCE.md#assembly."""
    ids, split = row["ids"], row["prompt_length"]
    prompt, answer = ids[:split], ids[split:]
    if head == "qa":
        return prompt + answer, [IGNORE] * (len(ids) - len(answer) - 1) + answer + [IDS.eos]
    return [row["gen"], *prompt, *answer], prompt + answer + [IDS.eos]


def grid_of_targets(batch: Batch, head: Head) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay out the head's targets and weights over (rows, time), with IGNORE and 0 elsewhere."""
    scored = batch.heads[head]
    assert len(set(scored.positions_N.tolist())) == len(scored.positions_N)
    targets = torch.full_like(batch.input_ids_RT, IGNORE).flatten()
    weights = torch.zeros(targets.shape)
    targets[scored.positions_N] = scored.targets_N
    weights[scored.positions_N] = scored.weights_N
    return targets.view(batch.input_ids_RT.shape), weights.view(batch.input_ids_RT.shape)


def test_worked_sequences() -> None:
    batch = build_batch(table(([*C, *Q], [*A])), np.array([0]), HEADS, IDS, 5.0)
    assert batch.input_ids_RT.tolist() == [[*C, *Q, 1, *A, IDS.pad], [GEN, *C, *Q, 1, *A]]
    qa, _ = grid_of_targets(batch, "qa")
    lm, _ = grid_of_targets(batch, "lm")
    assert qa.tolist() == [[IGNORE] * 5 + [*A, IDS.eos, IGNORE], [IGNORE] * 9]
    assert lm.tolist() == [[IGNORE] * 9, [*C, *Q, 1, *A, IDS.eos]]
    # REFERENCE.md#worked-values: seven ordinary tokens, ANS of weight 5, EOS.
    assert batch.heads["lm"].weights_N.sum().item() == 13
    assert batch.heads["qa"].weights_N.tolist() == [1, 1, 1]
    assert batch.num_tokens == 3 + 9


token = st.integers(10, 60)
pairs = st.tuples(st.lists(token, max_size=6), st.lists(token, max_size=5))


@st.composite
def pools(draw: st.DrawFn) -> tuple[pa.Table, np.ndarray]:
    """Draw a table of real and generated rows, and the indices of a batch in any order."""
    real, generated = draw(st.lists(pairs, max_size=4)), draw(st.lists(pairs, max_size=4))
    if not real and not generated:
        real = [([10], [11])]
    pool = concatenated(table(*real), table(*generated, origin="generated", gen=8))
    order = draw(st.permutations(range(pool.num_rows)))
    return pool, np.array(order[: draw(st.integers(1, pool.num_rows))])


@given(pools(), st.sampled_from([("qa",), ("lm",), ("qa", "lm"), ("lm", "qa")]), st.sampled_from([1.0, 5.0]))
def test_batch_equals_the_plain_twin(
    drawn: tuple[pa.Table, np.ndarray], heads: tuple[Head, ...], ans_weight: float
) -> None:
    tokens, indices = drawn
    batch = build_batch(tokens, indices, heads, IDS, ans_weight)
    rows = [tokens.slice(i, 1).to_pylist()[0] for i in indices]
    expected = [(head, row, *twin(row, head)) for head in heads for row in rows]
    width = max(len(x) for *_, x, _ in expected)
    assert batch.input_ids_RT.shape == (len(heads) * len(rows), width)
    for r, (head, _, x, y) in enumerate(expected):
        assert len(x) == len(y)
        assert batch.input_ids_RT[r].tolist() == x + [IDS.pad] * (width - len(x))
        targets, weights = grid_of_targets(batch, head)
        assert targets[r].tolist() == y + [IGNORE] * (width - len(y))
        plain = [0.0 if t == IGNORE else ans_weight if t == IDS.ans else 1.0 for t in y]
        assert weights[r].tolist() == plain + [0.0] * (width - len(y))
        # The target is the next input, if there is one.
        assert all(t in (IGNORE, after) for t, after in zip(y, x[1:], strict=False))
    assert batch.num_examples == len(rows)
    assert batch.num_current_examples == sum(row["origin"] == "real" for row in rows)
    assert batch.num_tokens == sum(t != IGNORE for *_, y in expected for t in y)


@given(pools())
def test_positions_of_current_examples_come_first(drawn: tuple[pa.Table, np.ndarray]) -> None:
    tokens, indices = drawn
    batch = build_batch(tokens, indices, HEADS, IDS, 5.0)
    origins = [tokens["origin"][int(i)].as_py() for i in indices] * len(HEADS)
    for scored in batch.heads.values():
        rows = (scored.positions_N // batch.input_ids_RT.shape[1]).tolist()
        assert [origins[r] == "real" for r in rows] == [k < scored.num_current for k in range(len(rows))]


def test_batches_without_current_or_without_generated_examples() -> None:
    only_real = build_batch(table(([10], [11])), np.array([0]), HEADS, IDS, 5.0)
    assert [h.num_current for h in only_real.heads.values()] == [2, 4]
    only_old = build_batch(table(([10], [11]), origin="generated"), np.array([0]), HEADS, IDS, 5.0)
    assert [h.num_current for h in only_old.heads.values()] == [0, 0]
    assert only_old.num_current_examples == 0


def test_tensor_types_suit_indexing() -> None:
    batch = build_batch(table(([10], [11]), ([10, 12], [])), np.array([1, 0]), HEADS, IDS, 5.0)
    lm = batch.heads["lm"]
    for tensor in (batch.input_ids_RT, lm.positions_N, lm.targets_N):
        assert tensor.dtype == torch.int64
    assert lm.weights_N.dtype == torch.float32
    logits = torch.randn(4, batch.input_ids_RT.shape[1], 64)
    assert logits.flatten(0, 1)[lm.positions_N].gather(1, lm.targets_N[:, None]).shape == (batch.num_tokens - 3, 1)


def test_a_batch_moves_to_a_device_completely() -> None:
    batch = build_batch(table(([10], [11]), ([10, 12], [])), np.array([1, 0]), HEADS, IDS, 5.0)
    moved = batch.to(torch.device("meta"))
    scored = [t for h in moved.heads.values() for t in (h.positions_N, h.targets_N, h.weights_N)]
    assert {t.device.type for t in (moved.input_ids_RT, *scored)} == {"meta"}
    assert (moved.num_examples, moved.num_current_examples, moved.num_tokens) == (2, 2, batch.num_tokens)
    assert [h.num_current for h in moved.heads.values()] == [h.num_current for h in batch.heads.values()]
    assert batch.input_ids_RT.device.type == "cpu"


def test_padding_tokens_inside_a_text_are_targets_like_others() -> None:
    batch = build_batch(table(([10, IDS.pad], [IDS.pad])), np.array([0]), ("qa",), IDS, 5.0)
    assert batch.heads["qa"].targets_N.tolist() == [IDS.pad, IDS.eos]
