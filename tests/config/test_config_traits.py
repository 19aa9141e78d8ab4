"""Traits of codecs and transports: complete, and consistent with the codecs and links themselves."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, get_args

import pytest
import torch

from ray_l4.config.cluster import ClusterConfig, ExchangeConfig
from ray_l4.config.traits import CODECS, TRANSPORTS, TransportTraits
from ray_l4.errors import ConfigError, ModelError
from ray_l4.exchange.codecs import Codec, Payload, build_codec
from ray_l4.exchange.codecs.table import BUILDERS
from ray_l4.exchange.links import ByReference
from ray_l4.learner.predictions import OutputLayer, Predictions
from ray_l4.workers.links import first_link
from tests.learner import learner_fixtures as small

CPU = torch.device("cpu")
VOCAB, WIDTH = 5, 3

every_codec = pytest.mark.parametrize("name", CODECS)
every_transport = pytest.mark.parametrize("name", TRANSPORTS)


def exchange(**values: Any) -> ExchangeConfig:
    return ExchangeConfig.model_validate(values)


def codec(name: str, **values: Any) -> Codec:
    """Build a codec without the checks of ``build_codec``, which ask the traits."""
    return BUILDERS[name](exchange(codec=name, top_k=2, samples=4, **values), small.experiment())


def predictions(seed: int, positions: int = 4) -> Predictions:
    """Predict some positions, from hidden states and an output layer."""
    draw = torch.Generator().manual_seed(seed)
    weight_VD = torch.randn(VOCAB, WIDTH, generator=draw)
    hidden_KD = torch.randn(positions, WIDTH, generator=draw)
    return Predictions({"qa": hidden_KD @ weight_VD.T}, {"qa": hidden_KD}, OutputLayer(weight_VD, None))


def log_probs(own: Codec, payload: Payload) -> torch.Tensor:
    """Return what a student with uniform predictions learns from a payload: (K, vocab), at the temperature."""
    targets = own.decode(payload)["qa"]
    everything = slice(0, targets.num_positions)
    temperature = small.experiment().distillation.temperature
    return targets.log_probs(everything, torch.zeros(targets.num_positions, VOCAB), temperature)


def test_every_codec_and_transport_of_a_profile_has_traits() -> None:
    choices = {name: set(get_args(ExchangeConfig.model_fields[name].annotation)) for name in ("codec", "transport")}
    assert set(CODECS) == choices["codec"] == set(BUILDERS)
    assert set(TRANSPORTS) == choices["transport"]


@every_codec
def test_a_profile_has_the_traits_of_its_codec(name: str) -> None:
    assert exchange(codec=name).codec_traits is CODECS[name]


# --- codecs


@every_codec
def test_payloads_of_a_codec_that_reduces_have_a_mean(name: str) -> None:
    """The mean of two payloads is the mean of the two predictions for ``mean``, and for no other codec."""
    own, peers = codec(name), [predictions(seed) for seed in (0, 1)]
    first, second = (own.encode(peer, 0) for peer in peers)
    mean = {
        key: ((tensor.float() + second.tensors[key].float()) / 2).to(tensor.dtype)
        for key, tensor in first.tensors.items()
    }
    expected = torch.stack([log_probs(own, payload).exp() for payload in (first, second)]).mean(0)
    found = log_probs(own, replace(first, tensors=mean)).exp()
    assert torch.allclose(found, expected, atol=1e-6) == CODECS[name].reduces
    assert CODECS[name].reduces == (name == "mean")


@every_codec
def test_only_targets_of_a_forward_only_codec_exclude_a_token(name: str) -> None:
    own = codec(name)
    logits = torch.tensor([[0.0, -400.0, -400.0, -400.0, -400.0]])
    sure = Predictions({"qa": logits}, {"qa": logits}, OutputLayer(torch.eye(VOCAB), None))
    assert bool(log_probs(own, own.encode(sure, 0)).isfinite().all()) == (not CODECS[name].forward_only)


@every_codec
def test_a_reverse_divergence_is_refused_by_forward_only_codecs(name: str) -> None:
    experiment = small.experiment(distillation={"direction": "reverse"})
    if CODECS[name].forward_only:
        with pytest.raises(ConfigError, match=f"distillation.direction: reverse .* exchange.codec: {name} "):
            build_codec(exchange(codec=name), experiment)
    else:
        build_codec(exchange(codec=name), experiment)


@every_codec
def test_float16_narrows_the_payloads_of_narrowable_codecs(name: str) -> None:
    few = predictions(0, positions=1)
    dtypes = {tensor.dtype for tensor in codec(name, precision="float16").encode(few, 0).tensors.values()}
    assert (dtypes == {torch.float16}) == CODECS[name].narrowable
    if CODECS[name].narrowable:
        build_codec(exchange(codec=name, precision="float16"), small.experiment())
    else:
        assert torch.float16 not in dtypes
        with pytest.raises(ConfigError, match=f"exchange.precision: float16 .* exchange.codec: {name} "):
            build_codec(exchange(codec=name, precision="float16"), small.experiment())


@every_codec
def test_the_output_layer_is_always_sent_by_codecs_that_need_it(name: str) -> None:
    own, sends_it = codec(name), CODECS[name].sends_output_layer
    nothing_else = own.encode(predictions(0, positions=0), 0)
    assert nothing_else.num_bytes == (4 * VOCAB * WIDTH if sends_it else 0)
    without = Predictions(predictions(0).logits)
    if sends_it:
        with pytest.raises(ModelError, match="factored sends"):
            own.encode(without, 0)
    else:
        own.encode(without, 0)


@every_codec
def test_payloads_of_a_random_codec_depend_on_the_seed(name: str) -> None:
    first, second = (codec(name).encode(predictions(0, positions=50), seed).tensors for seed in (0, 1))
    equal = all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    assert equal != CODECS[name].random


# --- transports


def cluster(name: str) -> ClusterConfig:
    """Build a profile that may use this transport."""
    return ClusterConfig.model_validate({"exchange": {"transport": name}, "students": {"gpus": 1}})


@every_transport
def test_a_transport_has_exactly_one_trait(name: str) -> None:
    traits = TRANSPORTS[name]
    assert [getattr(traits, own.name) for own in fields(TransportTraits)].count(True) == 1
    assert cluster(name).exchange.transport_traits is traits


def test_payloads_are_kept_in_one_process_and_in_the_object_store() -> None:
    ready = {name: traits.by_reference for name, traits in TRANSPORTS.items()}
    assert ready == {"in_process": True, "object_store": True, "collective": False, "cuda_ipc": False}


@every_transport
def test_a_profile_has_the_properties_of_its_transport(name: str) -> None:
    profile = cluster(name)
    assert profile.in_one_process == (name == "in_process")
    assert profile.forms_groups == (name == "collective")


@every_transport
def test_a_student_begins_with_the_link_of_its_transport(name: str) -> None:
    link = first_link(0, CPU, exchange(transport=name))
    # A student of ``collective`` has this link until its process group is formed.
    traits = TRANSPORTS[name]
    assert isinstance(link, ByReference) == (traits.by_reference or traits.process_group) != traits.device_memory


@every_transport
def test_device_memory_takes_a_gpu(name: str) -> None:
    without = {"exchange": {"transport": name}}
    if TRANSPORTS[name].device_memory:
        with pytest.raises(ValueError, match=f"exchange.transport: {name} shares GPU memory"):
            ClusterConfig.model_validate(without)
    else:
        ClusterConfig.model_validate(without)


@every_transport
@pytest.mark.parametrize("codec_name", CODECS)
def test_a_codec_that_reduces_takes_a_process_group(name: str, codec_name: str) -> None:
    tree = {"exchange": {"transport": name, "codec": codec_name}, "students": {"gpus": 1}}
    if CODECS[codec_name].reduces and not TRANSPORTS[name].process_group:
        with pytest.raises(ValueError, match="mean needs a collective reduction"):
            ClusterConfig.model_validate(tree)
    else:
        ClusterConfig.model_validate(tree)
