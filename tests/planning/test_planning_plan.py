"""The plan of a run, and advice if it does not fit."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ConfigError, ModelError
from ray_l4.planning import requirements
from ray_l4.planning.plan import Advice, Plan, PlanRequest, advise, make_plan
from ray_l4.planning.requirements import Estimator
from ray_l4.planning.view import as_json, tables
from tests.learner import architectures
from tests.planning.planning_fixtures import SHAPE, experiment, profile

MIB, GIB = 2**20, 2**30
ESTIMATOR = Estimator()
ON_GPUS: dict[str, Any] = {"students": {"gpus": 1}, "evaluators": {"count": 1, "cpus": 1}}


def plan(memory: int | None = 8 * GIB, config: Any = None, **sections: Any) -> Plan:
    return make_plan(PlanRequest(config or experiment(), memory), profile(**sections), ESTIMATOR)


def shown(made: Plan, advice: Advice | None = None, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in tables(made, advice, "what.yaml"):
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_plan_fits_or_names_the_device_that_is_too_small() -> None:
    assert plan(8 * GIB).fits and not plan(8 * GIB).problems
    small = plan(1 * GIB)
    assert not small.fits
    assert [
        problem for problem in small.problems if "node 0, main memory: needs" in problem and "has 1.0 GiB" in problem
    ]


def test_settings_that_change_no_tensor_share_a_simulation() -> None:
    told: list[str] = []
    estimator = Estimator(told.append)
    plans = [
        make_plan(PlanRequest(experiment(**sections), 8 * GIB), profile(), estimator)
        for sections in ({}, {"seed": 7}, {"optim": {"lr": 1e-3}}, {"training": {"batch_size": 4, "epochs": 9}})
    ]
    assert len({repr(made.requirements) for made in plans}) == 1 and len(told) == 2, "equal students, and an evaluator"
    make_plan(PlanRequest(experiment(optim={"weight_decay": 0.0}), 8 * GIB), profile(), estimator)
    assert len(told) > 2, "what is not known to be without effect is simulated"


@pytest.mark.parametrize(("method", "topology"), [("l4", "complete"), ("l4", "star"), ("l2kd-word", None)])
def test_the_memory_of_many_equal_peers_in_one_process_follows_from_that_of_a_few(
    method: str, topology: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that does not learn comes in addition."""
    request = PlanRequest(experiment(method=method, peers={"count": 11, "topology": topology}), 8 * GIB)
    cluster = profile(exchange={"transport": "in_process"})
    found = make_plan(request, cluster, Estimator()).requirements
    monkeypatch.setattr(requirements, "_FEW", (11, 12))
    simulated = make_plan(request, cluster, Estimator()).requirements
    assert found.received == simulated.received > 0
    (mine,), (theirs,) = found.processes, simulated.processes
    assert mine.device == pytest.approx(theirs.device, rel=1e-6)


def test_lack_of_room_is_a_problem_of_the_plan_not_an_exception() -> None:
    made = plan(None, ray={"num_cpus": 1})
    assert not made.fits and "no room for 2 students" in made.problems[0]
    assert made.requirements.parameters > 0, "its requirements are known all the same"
    assert not made.devices


def test_an_object_store_that_is_too_small_is_a_problem() -> None:
    config = experiment(model={"from_scratch": {**SHAPE, "positions": 512, "vocabulary": 8000}})
    made = plan(100 * GIB, config, ray={"object_store_memory": 80_000_000})
    assert [problem for problem in made.problems if problem.startswith("object store: ")]
    assert plan(100 * GIB, config, ray={"object_store_memory": 10**10}).fits


def between(config: Any, **smaller: Any) -> int:
    """Return the memory of a GPU on which ``config`` fits with these settings of students only."""
    whole = plan(100 * GIB, config, **ON_GPUS)
    pieces = plan(100 * GIB, config, students={**ON_GPUS["students"], **smaller}, evaluators=ON_GPUS["evaluators"])
    large, little = largest(whole), largest(pieces)
    assert little < large
    return (large + little) // 2


def largest(made: Plan) -> int:
    """Return the memory that the GPU which needs most needs, in bytes."""
    return max(device.needed for device in made.devices if "GPU" in device.name)


@pytest.mark.slow
def test_advice_names_the_profiles_and_the_settings_that_fit() -> None:
    config = experiment()
    memory = between(config, micro_batch=2)
    cluster = profile(**ON_GPUS)
    assert not make_plan(PlanRequest(config, memory), cluster, ESTIMATOR).fits
    others = {
        "sharded.yaml": profile(**{**ON_GPUS, "students": {"gpus": 1, "shards_per_student": 2}}),
        "alike.yaml": cluster,
        "shared.yaml": profile(students={"gpus": 0.5}, evaluators={"count": 1, "cpus": 1}),
    }
    advice = advise(PlanRequest(config, memory), cluster, others, ESTIMATOR)
    assert advice.profiles["sharded.yaml"] == ""
    assert "GPU 0: needs" in advice.profiles["alike.yaml"] and "GPU 0: needs" in advice.profiles["shared.yaml"]
    assert ("cluster.students.micro_batch=2",) in advice.settings
    assert ("cluster.students.micro_batch=1",) not in advice.settings, "half a batch is enough"
    made = make_plan(
        PlanRequest(config, memory), profile(**{**ON_GPUS, "students": {"gpus": 1, "micro_batch": 2}}), ESTIMATOR
    )
    assert made.fits, "the advice is good"
    text = shown(make_plan(PlanRequest(config, memory), cluster, ESTIMATOR), advice)
    assert "does not fit" in text and "sharded.yaml" in text and "--set cluster.students.micro_batch=2" in text


def test_advice_knows_gradient_checkpointing_and_weights_in_bfloat16(tmp_path: Any) -> None:
    """What is advised makes the run fit, and nothing is advised that is set already."""
    architectures.GPT2.save_pretrained(tmp_path)
    model: dict[str, Any] = {"name": str(tmp_path), "lora": {"rank": 8}, "precision": "bfloat16"}
    training, cluster = {"batch_size": 1}, profile(**ON_GPUS)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"gradient_checkpointing": True}, "model.gradient_checkpointing=true"),
        ({"dtype": "bfloat16"}, "model.dtype=bfloat16"),
    ]
    for setting, change in cases:
        plain, saving = experiment(model=model, training=training), experiment(model=model | setting, training=training)
        whole, less = (largest(plan(100 * GIB, config, **ON_GPUS)) for config in (plain, saving))
        assert less < whole
        advice = advise(PlanRequest(plain, (whole + less) // 2), cluster, {}, ESTIMATOR)
        assert (change,) in advice.settings
        assert (change,) not in advise(PlanRequest(saving, 100 * GIB), cluster, {}, ESTIMATOR).settings


def test_weights_in_bfloat16_are_advised_under_adapters_alone(tmp_path: Any) -> None:
    architectures.GPT2.save_pretrained(tmp_path)
    config = experiment(model={"name": str(tmp_path)}, training={"batch_size": 1})
    settings = advise(PlanRequest(config, 100 * GIB), profile(**ON_GPUS), {}, ESTIMATOR).settings
    assert ("model.dtype=bfloat16", "model.lora.rank=8") in settings
    scratch = advise(PlanRequest(experiment(), 100 * GIB), profile(**ON_GPUS), {}, ESTIMATOR).settings
    assert not any("dtype" in change for changes in scratch for change in changes)


def test_advice_for_a_named_model_knows_adapters(tmp_path: Any) -> None:
    architectures.GPT2.save_pretrained(tmp_path)
    config = experiment(model={"name": str(tmp_path)}, training={"batch_size": 1})
    cluster = profile(**ON_GPUS)
    fits_all = advise(PlanRequest(config, 100 * GIB), cluster, {}, ESTIMATOR)
    assert ("model.lora.rank=8",) in fits_all.settings or ("model.precision=bfloat16",) in fits_all.settings
    nothing = advise(PlanRequest(config, 10 * MIB), cluster, {}, ESTIMATOR)
    assert nothing.settings == ()
    assert "use larger devices" in " ".join(
        shown(make_plan(PlanRequest(config, 10 * MIB), cluster, ESTIMATOR), nothing).split()
    )


@pytest.mark.slow
def test_one_process_is_not_advised_to_be_sharded() -> None:
    cluster = profile(exchange={"transport": "in_process"})
    advice = advise(PlanRequest(experiment(), 100 * GIB), cluster, {}, ESTIMATOR)
    assert advice.settings and not any("shards" in change for changes in advice.settings for change in changes)


def test_mistakes_raise() -> None:
    with pytest.raises(ConfigError, match="--tokens"):
        make_plan(PlanRequest(experiment(), tokens=4000), ClusterConfig(), ESTIMATOR)
    with pytest.raises(ModelError, match="neither a folder"):
        plan(config=experiment(model={"name": "nowhere/at-all"}))


@pytest.mark.parametrize(
    "sections", [{}, ON_GPUS, {"students": {"gpus": 1, "shards_per_student": 4, "sharding": "full"}}]
)
def test_tables_are_readable_at_80_columns(sections: dict[str, Any]) -> None:
    text = shown(plan(100 * GIB, **sections))
    assert max(map(len, text.splitlines())) <= 80
    for word in ("parameters", "activations", "worst case", "published", "placement", "fits"):
        assert word in " ".join(text.split())
    assert "…" not in text, "nothing is cut"


def test_json_holds_the_whole_plan() -> None:
    made = plan(1 * GIB)
    advice = Advice({"a.yaml": ""}, (("model.precision=bfloat16",),))
    value = json.loads(json.dumps(as_json(made, advice)))
    assert value["fits"] is False and value["problems"]
    assert value["bytes_per_student_step"] == made.requirements.published > 0
    assert value["batch"]["at_once"] == 4
    student = value["processes"][0]
    assert sum(student["device"].values()) == student["device_bytes"] == student["host"]
    assert value["devices"][0]["needed"] > value["devices"][0]["there"]
    assert value["advice"] == {"profiles": {"a.yaml": ""}, "settings": [["model.precision=bfloat16"]]}
    assert as_json(made, None)["advice"] is None
