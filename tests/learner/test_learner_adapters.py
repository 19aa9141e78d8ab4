"""Adapters: trained weights, stored bytes, and equality with the plain model in all else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ray_l4.config.model import ModelConfig
from ray_l4.errors import ModelError
from ray_l4.learner.adapters import token_rows_merged
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import arithmetic, blank_model, build_model, describe, load_bytes, to_bytes
from ray_l4.learner.position_logits import PositionLogits
from ray_l4.learner.stage_run import StageRun
from ray_l4.text.assembly import assemble
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import adapter_fixtures as adapted
from tests.learner import learner_fixtures as small
from tests.learner.adapter_fixtures import IDS, added, build, logits
from tests.learner.architectures import logits_at


@pytest.fixture(scope="module", params=list(adapted.CONFIGS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapted.save_base(tmp_path_factory.mktemp("base"), adapted.CONFIGS[request.param])


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapted.save_base(tmp_path_factory.mktemp("gpt2"), adapted.CONFIGS["gpt2, tied"])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapted.save_base(tmp_path_factory.mktemp("llama"), adapted.CONFIGS["llama, untied"])


def learners(base: Path, **lora: object) -> tuple[list[Learner], TaskTokenizer]:
    tok = adapted.tokenizer(base)
    return small.peers(adapted.experiment(base, **lora), tok), tok


def begun(peers: list[Learner], tok: TaskTokenizer, stage: int = 0, count: int = 24) -> list[StageRun]:
    """Begin a stage on examples of task ``b``."""
    table, dropped = assemble(small.examples("b", count), tok, 64)
    assert not dropped
    return small.begun(peers, table, stage)


def run_steps(runs: list[StageRun], steps: range) -> list[float]:
    losses = []
    for step in steps:
        sent = [run.forward(step).targets() for run in runs]
        losses.append(runs[0].backward(step, [sent[1]])["loss"])
        runs[1].backward(step, [sent[0]])
    return losses


# --- trained weights


def test_only_adapters_and_new_rows_are_trained(base: Path) -> None:
    model, tok = build(base)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    rows = {name: parameter for name, parameter in trained.items() if "lora_" not in name}
    tied = model.config.tie_word_embeddings
    assert len(rows) == (1 if tied else 2), "tied rows are one parameter"
    assert all(parameter.shape == (len(added(tok)), 32) for parameter in rows.values())
    assert len(trained) - len(rows) == 2 * 2 * (1 if model.config.model_type == "gpt2" else 2)
    # Disturbed, because B starts at zero, which makes the gradient of every A zero.
    logits_at(PositionLogits(adapted.disturb(model)), IDS, torch.arange(5)).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name


def test_untrained_adapters_change_nothing(base: Path) -> None:
    model, tok = build(base, seed=5)
    plain = build_model(ModelConfig(name=str(base)), tok, 5)
    assert torch.equal(logits(model), logits(plain))


def test_the_pretrained_weights_do_not_change(base: Path) -> None:
    peers, tok = learners(base, dropout=0.1)
    before = {name: tensor.clone() for name, tensor in frozen(peers[0].model).items()}
    start = peers[0].weights().tobytes()
    run_steps(begun(peers, tok), range(4))
    after = frozen(peers[0].model)
    assert before and before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert peers[0].weights().tobytes() != start


def test_merging_token_rows_for_a_while_changes_no_prediction(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    model = adapted.disturb(build(base)[0]).eval()
    built: list[TrainableTokensLayer] = []
    plain = TrainableTokensLayer.get_merged_weights
    monkeypatch.setattr(
        TrainableTokensLayer, "get_merged_weights", lambda layer, names: built.append(layer) or plain(layer, names)
    )
    with torch.no_grad():
        expected = logits(model)
        at_every_call = len(built)
        with token_rows_merged(model):
            built.clear()
            assert torch.equal(logits(model), expected)
            assert not built, "nothing is built again"
        # Rows that have changed since are seen.
        adapted.disturb(model)
        assert not torch.equal(logits(model), expected)
        assert len(built) == at_every_call > 0


def test_token_rows_are_no_longer_merged_after_an_error(base: Path) -> None:
    model = adapted.disturb(build(base)[0])
    expected = logits(model)
    with pytest.raises(RuntimeError, match="meanwhile"), token_rows_merged(model):
        raise RuntimeError("meanwhile")
    assert not any("get_merged_weights" in vars(module) for module in model.modules())
    assert torch.equal(logits(model), expected)


def frozen(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if not p.requires_grad}


def test_all_trained_weights_change(base: Path) -> None:
    peers, tok = learners(base, dropout=0.1)
    model = peers[0].model
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    run_steps(begun(peers, tok), range(4))
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.requires_grad:
            assert not torch.equal(parameter, before[name]), name
    rows = model.get_input_embeddings().token_adapter.trainable_tokens_delta["default"]
    moved = (rows - before[next(name for name in before if "tokens_delta" in name)]).abs().amax(1) > 0
    assert moved[added(tok).index(tok.ans)] and moved[added(tok).index(tok.gen["b"])]


def test_added_tokens_that_use_spare_rows_are_trained(tmp_path: Path) -> None:
    """Models such as Qwen's have more rows than tokens, so no row is drawn, but the rows used are untrained."""
    base = adapted.save_base(tmp_path, adapted.CONFIGS["llama, tied"], spare_rows=50)
    model, tok = build(base)
    assert model.get_input_embeddings().weight.shape[0] > tok.size
    assert describe(model)["adapters"]["trainable_token_indices"] == {"model.embed_tokens": added(tok)}


def test_random_numbers_follow_from_the_seed(llama: Path) -> None:
    before = torch.get_rng_state()
    one, two, other = (to_bytes(build(llama, seed)[0]).tobytes() for seed in (3, 3, 4))
    assert one == two
    assert one != other
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_of_adapters_depends_on_peer_and_step(llama: Path) -> None:
    """Llama has no dropout of its own, so only the adapters' dropout makes two peers differ."""
    runs = []
    for _ in range(2):
        peers, tok = learners(llama, dropout=0.1)
        run_steps(begun(peers, tok), range(3))
        runs.append([peer.weights().tobytes() for peer in peers])
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]
    peers, tok = learners(llama, dropout=0.0)
    run_steps(begun(peers, tok), range(3))
    assert peers[0].weights().tobytes() == peers[1].weights().tobytes()


def test_position_logits_equal_those_of_the_model(base: Path) -> None:
    model, _ = build(base)
    chosen = PositionLogits(adapted.disturb(model))
    assert chosen.direct
    positions_N = torch.tensor([26, 0, 13, 13])
    expected = model(input_ids=IDS).logits.flatten(0, 1)[positions_N]
    torch.testing.assert_close(logits_at(chosen, IDS, positions_N), expected)


def test_bfloat16_arithmetic_leaves_adapters_in_float32(base: Path) -> None:
    model, _ = build(base)
    exact = logits(adapted.disturb(model))
    with arithmetic(ModelConfig(name="any", precision="bfloat16"), torch.device("cpu")):
        rough = logits(model)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# --- bytes


def test_bytes_restore_a_model_built_with_another_seed(base: Path) -> None:
    """The bytes overwrite everything that was drawn with the other seed."""
    model, tok = build(base, seed=1)
    weights = to_bytes(adapted.disturb(model))
    weights.setflags(write=False)
    other = blank_model(adapted.experiment(base).model, tok, describe(model))
    assert not torch.equal(logits(other), logits(model))
    load_bytes(other, weights)
    assert torch.equal(logits(other), logits(model))
    assert to_bytes(other).tobytes() == weights.tobytes()


def test_a_blank_model_without_adapters_comes_from_the_description(gpt2: Path) -> None:
    tok, config = adapted.tokenizer(gpt2), ModelConfig(name=str(gpt2))
    model = build_model(config, tok, 0)
    other = blank_model(config, tok, json.loads(json.dumps(describe(model))))
    load_bytes(other, to_bytes(model))
    assert torch.equal(logits(other), logits(model))


def test_bytes_hold_only_what_is_trained(base: Path) -> None:
    model, tok = build(base)
    weights = to_bytes(model)
    numbers = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert numbers < weights.nbytes < numbers + 4096
    assert weights.nbytes < 0.5 * to_bytes(build_model(ModelConfig(name=str(base)), tok, 0)).nbytes


def test_weights_that_do_not_fit_are_refused(gpt2: Path, llama: Path) -> None:
    model, tok = build(gpt2)
    weights = to_bytes(model)
    with pytest.raises(ModelError, match=r"weights do not fit the adapters: size mismatch for .*lora_A"):
        load_bytes(build(gpt2, rank=3)[0], weights)
    with pytest.raises(
        ModelError, match=r"do not fit the adapters: missing \['base_model\.model\.transformer\.h\.0\.mlp"
    ):
        load_bytes(build(gpt2, targets=["c_attn", "c_fc"])[0], weights)
    with pytest.raises(ModelError, match=r"unexpected \['base_model\.model\.transformer"):
        load_bytes(build(llama)[0], weights)
    with pytest.raises(ModelError, match=r"do not fit the model: missing .*, unexpected \['base_model"):
        load_bytes(build_model(ModelConfig(name=str(gpt2)), tok, 0), weights)
    with pytest.raises(ModelError, match="are damaged"):
        load_bytes(model, weights[:-1])


def test_a_restored_peer_learns_the_next_stage_bit_for_bit_the_same(llama: Path) -> None:
    """A stage depends on nothing but the weights that it starts from."""
    peers, tok = learners(llama, dropout=0.1)
    run_steps(begun(peers, tok), range(3))
    kept = [peer.weights() for peer in peers]
    restored, _ = learners(llama, dropout=0.1)
    for peer, weights in zip(restored, kept, strict=True):
        load_bytes(peer.model, weights)
    ends = []
    for group in (peers, restored):
        run_steps(begun(group, tok, stage=1), range(3))
        ends.append([peer.weights().tobytes() for peer in group])
    assert ends[0] == ends[1]


# --- a real model


@pytest.mark.shared_data
def test_a_trained_llama_learns_with_adapters(shared_data: Path) -> None:
    base = shared_data / "models" / "stories260K"
    peers, tok = learners(base, dropout=0.1)
    losses = run_steps(begun(peers, tok, count=40), range(20))
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert peers[0].weights().nbytes < 0.1 * to_bytes(build_model(ModelConfig(name=str(base)), tok, 0)).nbytes
