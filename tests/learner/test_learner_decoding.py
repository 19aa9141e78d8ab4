"""Decoding, against a plain implementation without cache and padding, and the distribution of samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from ray_l4.learner.decoding import continue_prompts
from ray_l4.learner.engine import Decoding
from ray_l4.learner.sampling import Chooser
from ray_l4.seeds import derive
from ray_l4.text.chunks import in_chunks
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import learner_fixtures as small

LENGTHS = (1, 2, 3, 5, 8, 13, 13, 21)


@pytest.fixture(scope="module")
def tok() -> TaskTokenizer:
    return small.tokenizer()


@pytest.fixture(scope="module")
def model(tok: TaskTokenizer) -> PreTrainedModel:
    """A model with weights so large that every token affects the next ones, and that sometimes generates EOS."""
    model = small.attentive(tok)
    with torch.no_grad():
        model.transformer.wte.weight[tok.eos] *= 3
    return model


@pytest.fixture(scope="module")
def prompts(tok: TaskTokenizer) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(300, (length,), generator=draw).tolist() for length in LENGTHS]


@torch.no_grad()
def plainly(model: PreTrainedModel, prompt: Sequence[int], eos: int, count: int) -> list[int]:
    """Decode one prompt greedily, running all of it again for every token."""
    ids = list(prompt)
    for _ in range(count):
        best = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if best == eos:
            break
        ids.append(best)
    return ids[len(prompt) :]


def test_greedy_decoding_equals_the_plain_implementation(
    model: PreTrainedModel, tok: TaskTokenizer, prompts: list[list[int]]
) -> None:
    expected = [plainly(model, prompt, tok.eos, 24) for prompt in prompts]
    assert continue_prompts(model, tok, prompts, 24) == expected
    lengths = {len(new) for new in expected}
    assert 24 in lengths and min(lengths) < 24, "both ends, by EOS and by length, must occur"
    assert len({tuple(new) for new in expected}) == len(prompts), "a model that says the same to all tests nothing"


def test_a_continuation_does_not_depend_on_the_batch(
    model: PreTrainedModel, tok: TaskTokenizer, prompts: list[list[int]]
) -> None:
    together = continue_prompts(model, tok, prompts, 16)
    assert [continue_prompts(model, tok, [prompt], 16)[0] for prompt in prompts] == together
    backwards = continue_prompts(model, tok, prompts[::-1], 16)
    assert backwards[::-1] == together


def test_nothing_follows_eos_and_eos_itself_is_cut(model: PreTrainedModel, tok: TaskTokenizer) -> None:
    with torch.no_grad():
        eos_row = model.transformer.wte.weight[tok.eos].clone()
        model.transformer.wte.weight[tok.eos] *= 1000
    try:
        new = continue_prompts(model, tok, [[1, 2], [3], [4, 5, 6]], 12, Decoding(top_k=3), seeds=[0, 1, 2])
    finally:
        with torch.no_grad():
            model.transformer.wte.weight[tok.eos] = eos_row
    assert [] in new, "EOS may come first"
    assert all(tok.eos not in row for row in new)


@pytest.mark.parametrize("training", [True, False])
def test_decoding_has_no_dropout_and_restores_the_mode(
    model: PreTrainedModel, tok: TaskTokenizer, prompts: list[list[int]], training: bool
) -> None:
    expected = continue_prompts(model.eval(), tok, prompts, 8)
    assert continue_prompts(model.train(training), tok, prompts, 8) == expected
    assert model.training == training
    model.eval()


def test_sampling_draws_no_global_random_numbers(
    model: PreTrainedModel, tok: TaskTokenizer, prompts: list[list[int]]
) -> None:
    """Generating must not affect the student's later training."""
    before = torch.get_rng_state()
    continue_prompts(model, tok, prompts, 4, Decoding(top_k=5), seeds=range(len(prompts)))
    assert torch.equal(torch.get_rng_state(), before)


def sampled(
    model: PreTrainedModel, tok: TaskTokenizer, prompts: Sequence[Sequence[int]], seeds: Sequence[int], new: int = 12
) -> list[list[int]]:
    return continue_prompts(model, tok, prompts, new, Decoding(top_k=20), seeds=seeds)


def test_a_sample_depends_on_its_own_seed_alone(
    model: PreTrainedModel, tok: TaskTokenizer, prompts: list[list[int]]
) -> None:
    seeds = [derive(0, "replay", i) for i in range(len(prompts))]
    together = sampled(model, tok, prompts, seeds)
    others = [seeds[0], *(seed + 1 for seed in seeds[1:])]
    with_other_neighbours = sampled(model, tok, prompts, others)
    assert with_other_neighbours[0] == together[0]
    assert with_other_neighbours[1:] != together[1:]
    alone = [sampled(model, tok, [prompt], [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert alone == together
    halves = [*sampled(model, tok, prompts[:3], seeds[:3]), *sampled(model, tok, prompts[3:], seeds[3:])]
    assert halves == together


def test_a_higher_limit_extends_the_same_sample(
    model: PreTrainedModel, tok: TaskTokenizer, prompts: list[list[int]]
) -> None:
    """The limit differs between the chunks of a test set, and must not affect the samples."""
    seeds = list(range(len(prompts)))
    short, long = (sampled(model, tok, prompts, seeds, new) for new in (5, 15))
    assert [row[:5] for row in long] == short
    assert any(len(row) > 5 for row in long)


def test_different_seeds_give_different_samples_of_one_prompt(model: PreTrainedModel, tok: TaskTokenizer) -> None:
    samples = sampled(model, tok, [[7, 8]] * 20, range(20))
    assert len({tuple(sample) for sample in samples}) == 20


@pytest.mark.parametrize("seeds", [None, [1]])
def test_sampling_without_a_seed_for_every_prompt_is_refused(
    model: PreTrainedModel, tok: TaskTokenizer, seeds: list[int] | None
) -> None:
    with pytest.raises(ValueError, match="one seed for each of the 2 prompts"):
        continue_prompts(model, tok, [[1], [2]], 4, Decoding(top_k=5), seeds=seeds)


# --- banned tokens


@torch.no_grad()
def test_greedy_decoding_skips_banned_tokens(
    model: PreTrainedModel, tok: TaskTokenizer, prompts: list[list[int]]
) -> None:
    """The banned tokens are those that the plain implementation generates most."""
    free = continue_prompts(model, tok, prompts, 12)
    banned = sorted({token for row in free for token in row[:3]})
    new = continue_prompts(model, tok, prompts, 12, Decoding(banned=banned))
    assert not set(banned) & {token for row in new for token in row}
    for prompt, row in zip(prompts, new, strict=True):
        ids = list(prompt)
        for token in [*row, tok.eos][:12]:
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            logits[banned] = -torch.inf
            assert token == int(logits.argmax())
            ids.append(token)


@pytest.mark.parametrize("top_k", [2, 20])
def test_a_banned_token_is_never_drawn_and_top_k_others_remain(
    model: PreTrainedModel, tok: TaskTokenizer, prompts: list[list[int]], top_k: int
) -> None:
    """It is removed before the selection, so ``top_k`` tokens remain even if it was the likeliest."""
    seeds = list(range(len(prompts)))
    free = continue_prompts(model, tok, prompts, 12, Decoding(top_k=top_k), seeds=seeds)
    banned = sorted({token for row in free for token in row})
    new = continue_prompts(model, tok, prompts, 12, Decoding(top_k=top_k, banned=banned), seeds=seeds)
    said = {token for row in new for token in row}
    assert said and not set(banned) & said

    prompt, count = prompts[3], 300
    with torch.no_grad():
        best = torch.topk(model(input_ids=torch.tensor([prompt])).logits[0, -1], top_k + 1).indices.tolist()
    many = [prompt] * count, 1
    draw = continue_prompts(
        model, tok, *many, Decoding(top_k=top_k, temperature=50.0, banned=best[:1]), seeds=range(count)
    )
    assert {row[0] if row else tok.eos for row in draw} == set(best[1:])


@pytest.mark.parametrize("top_k", [1, 20], ids=["greedy", "sampled"])
def test_banning_tokens_that_do_not_occur_changes_nothing(
    model: PreTrainedModel, tok: TaskTokenizer, prompts: list[list[int]], top_k: int
) -> None:
    seeds = range(len(prompts))
    free = continue_prompts(model, tok, prompts, 8, Decoding(top_k), seeds)
    assert continue_prompts(model, tok, prompts, 8, Decoding(top_k, banned=[]), seeds) == free
    with torch.no_grad():
        logits = torch.cat(
            [model(input_ids=torch.tensor([prompt + row])).logits[0] for prompt, row in zip(prompts, free, strict=True)]
        )
    never = sorted(set(range(tok.size)) - set(torch.topk(logits, 20).indices.flatten().tolist()))[:40]
    assert never
    assert continue_prompts(model, tok, prompts, 8, Decoding(top_k, banned=never), seeds) == free


def test_a_ban_does_not_outlast_its_call(model: PreTrainedModel, tok: TaskTokenizer, prompts: list[list[int]]) -> None:
    free = continue_prompts(model, tok, prompts, 8)
    continue_prompts(model, tok, prompts, 8, Decoding(banned=sorted({row[0] for row in free if row})))
    assert continue_prompts(model, tok, prompts, 8) == free


# --- the distribution of samples


def chooser(top_k: int, temperature: float = 1.0) -> Chooser:
    return Chooser(Decoding(top_k, temperature), torch.device("cpu"))


def noise_of(own: Chooser, seeds: Sequence[int]) -> torch.Tensor:
    noise_tBK = own.noise([np.random.default_rng(seed) for seed in seeds])
    assert noise_tBK is not None
    return noise_tBK


def draws(logits_V: torch.Tensor, count: int, top_k: int, temperature: float) -> torch.Tensor:
    """Count how often each token is drawn: (vocab,)."""
    own = chooser(top_k, temperature)
    picked = own.choose(logits_V.expand(count, -1), noise_of(own, range(count))[0])
    return torch.bincount(picked, minlength=len(logits_V))


def check_frequencies(counts_V: torch.Tensor, logits_V: torch.Tensor, top_k: int, temperature: float) -> None:
    """Check Pearson's statistic, whose mean is k - 1, to 5 standard deviations."""
    best = torch.topk(logits_V, top_k).indices
    outside = torch.ones(len(logits_V), dtype=torch.bool).index_fill(0, best, False)
    assert int(counts_V[outside].sum()) == 0, "only the k most likely are drawn"
    expected = torch.softmax(logits_V[best] / temperature, -1) * counts_V.sum()
    assert float(expected.min()) > 5, "the statistic needs a few draws everywhere"
    statistic = float(((counts_V[best] - expected) ** 2 / expected).sum())
    assert statistic < (top_k - 1) + 5 * (2 * (top_k - 1)) ** 0.5


@pytest.mark.parametrize(("top_k", "temperature"), [(2, 1.0), (5, 1.0), (5, 0.7), (5, 3.0), (9, 1.0)])
def test_frequencies_are_the_softmax_of_the_top_k(top_k: int, temperature: float) -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 1.5, 0.0, -0.5, 1.0, -2.0, 0.7])
    check_frequencies(draws(logits, 8000, top_k, temperature), logits, top_k, temperature)


def test_the_check_detects_another_temperature() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 1.5, 0.0])
    with pytest.raises(AssertionError):
        check_frequencies(draws(logits, 8000, 5, 1.0), logits, 5, 1.2)


def test_sample_frequencies_match_the_models_probabilities(model: PreTrainedModel, tok: TaskTokenizer) -> None:
    prompt, count = [5, 6, 7], 3000
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].float()
    new = continue_prompts(model, tok, [prompt] * count, 1, Decoding(top_k=6, temperature=2.0), seeds=range(count))
    counts = torch.bincount(torch.tensor([row[0] if row else tok.eos for row in new]), minlength=len(logits))
    check_frequencies(counts, logits, 6, 2.0)


def test_every_token_gets_new_noise() -> None:
    """With equal noise at every token, a sample would always choose the same rank."""
    logits, count, own = torch.zeros(4), 4000, chooser(4)
    noise_tBK = noise_of(own, range(count))
    first, second = (own.choose(logits.expand(count, -1), noise_tBK[step]) for step in range(2))
    pairs = torch.bincount(4 * first + second, minlength=16)
    check_frequencies(pairs, torch.zeros(16), 16, 1.0)


@given(st.integers(2, 20_000), st.integers(1, 3), st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3))
@example(20, 2, [5])
def test_noise_is_that_of_one_matrix_for_the_whole_sample(top_k: int, blocks: int, seeds: list[int]) -> None:
    """So the numbers of earlier versions, which drew it at once or token by token, stay."""
    own = chooser(top_k)
    generators = [np.random.default_rng(seed) for seed in seeds]
    drawn = torch.cat([own.noise(generators) for _ in range(blocks)])
    shape = blocks * own.block, top_k
    at_once = np.stack([np.random.default_rng(seed).gumbel(size=shape) for seed in seeds], axis=1)
    assert torch.equal(drawn, torch.from_numpy(at_once).float())
    assert own.block * top_k <= max(16_384, top_k)


def test_the_largest_length_takes_no_memory(tok: TaskTokenizer) -> None:
    """Noise for all positions at once took 21 MB an example of a model with 131,072."""
    model = small.attentive(tok)
    with torch.no_grad():
        direction = torch.ones(model.config.n_embd)
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(direction)
        model.transformer.wte.weight[tok.eos] = 100 * direction
    assert continue_prompts(model, tok, [[5], [6]], 10**9, Decoding(top_k=20), seeds=[1, 2]) == [[], []]


@given(st.integers(1, 12), st.integers(2, 30), st.integers(0, 2**63 - 1))
def test_the_best_sum_of_the_top_k_and_their_noise_is_chosen(vocabulary: int, top_k: int, seed: int) -> None:
    logits_BV = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(seed))
    own = chooser(top_k, 0.7)
    noise_BK = noise_of(own, [seed, seed + 1, 3])[0]
    for row, chosen in enumerate(own.choose(logits_BV, noise_BK).tolist()):
        ranked = sorted(range(vocabulary), key=lambda token: -float(logits_BV[row, token]))[:top_k]
        sums = {
            token: float(logits_BV[row, token] / 0.7 + noise)
            for token, noise in zip(ranked, noise_BK[row], strict=False)
        }
        assert chosen == max(sums, key=sums.__getitem__)


def test_half_precision_scores_are_sampled_in_float32() -> None:
    """In bfloat16 the noise would cause ties, which arg max breaks by position."""
    own, logits_BV = chooser(4), torch.full((1, 4), 1000.0, dtype=torch.bfloat16)
    noise_BK = torch.tensor([[0.1, 0.2, 0.4, 0.3]])
    (best,) = torch.topk(logits_BV.float(), 4).indices[:, 2]
    assert own.choose(logits_BV, noise_BK).tolist() == [int(best)]


# --- chunks


@given(st.integers(0, 100), st.integers(1, 30))
def test_chunks_are_consecutive_complete_and_equal_in_size(total: int, size: int) -> None:
    chunks = in_chunks(total, size)
    assert [index for chunk in chunks for index in chunk] == list(range(total))
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= size for chunk in chunks)
