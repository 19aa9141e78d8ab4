"""Inputs whose settings are damaged: experiments, profiles, protocols, ``--set``, topology files and options."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from analysis.fuzz.inputs import DRY_RUN, HERE, PLAN, SETTINGS, SWEEP, Input, argument
from analysis.fuzz.material import EXPERIMENT, PROFILE
from analysis.fuzz.mutations import NUMBERS, VALUES, Content, Draw, Instead, damaged_bytes, damaged_tree, texts
from analysis.fuzz.run_inputs import CHEAP, READERS


@cache
def _full(which: str) -> Any:
    """Return all settings with their defaults, so that each of them is damaged at times."""
    from ray_l4.config.cluster import ClusterConfig
    from ray_l4.config.experiment import ExperimentConfig

    if which == "profile":
        return ClusterConfig.model_validate(PROFILE).model_dump(mode="json")
    return ExperimentConfig.model_validate(EXPERIMENT).model_dump(mode="json")


@cache
def _keys(which: str) -> tuple[str, ...]:
    from ray_l4.config.cluster import ClusterConfig
    from ray_l4.config.experiment import ExperimentConfig
    from ray_l4.config.problems import keys_of

    return tuple(keys_of(ClusterConfig, "cluster.") if which == "profile" else keys_of(ExperimentConfig))


def _dump_yaml(tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False, width=10**9)


@st.composite
def _settings_text(draw: Draw, which: str) -> bytes:
    """Draw the bytes of an experiment or a profile: one value is damaged, or the bytes are."""
    tree = draw(st.sampled_from([EXPERIMENT if which == "experiment" else PROFILE, _full(which)]))
    if draw(st.integers(0, 3)):
        names = tuple(key.rpartition(".")[2] for key in _keys(which))
        dump = draw(st.sampled_from([_dump_yaml, json.dumps]))
        return draw(damaged_tree(tree, dump, names)).encode("utf-8", errors="surrogatepass")
    whole = _dump_yaml(tree).encode()
    bombs = [
        b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        b"? " * 3000,
        b"- " * 5000,
        b"{" * 4000,
        b"!!python/object:os.x",
    ]
    return draw(st.one_of(damaged_bytes(whole), st.sampled_from(bombs), st.binary(max_size=60)))


@st.composite
def experiments(draw: Draw, material: Path) -> Input:
    """Draw experiments with a damaged value, for the commands that read one."""
    damaged = draw(_settings_text("experiment"))
    command = draw(st.sampled_from([DRY_RUN, DRY_RUN, PLAN, SWEEP, (*DRY_RUN, "--with", f"{HERE}/overlay.yaml")]))
    where = "overlay.yaml" if "--with" in command else "experiment.yaml"
    return Input(command, SETTINGS | {where: damaged})


@st.composite
def profiles(draw: Draw, material: Path) -> Input:
    """Draw profiles with a damaged value."""
    return Input(draw(st.sampled_from([DRY_RUN, PLAN])), SETTINGS | {"profile.yaml": draw(_settings_text("profile"))})


@st.composite
def protocols(draw: Draw, material: Path) -> Input:
    """Draw protocols of sweeps with a damaged value."""
    sweep = {
        "title": "t",
        "table": None,
        "variants": {"a": {"method": "l4"}, "b": {"training.epochs": 1}},
        "orders": [["mini.woz", "mini.rest"]],
        "grid": {"optim.lr": [1e-3, 1e-4]},
        "seeds": 2,
    }
    text = draw(damaged_tree({"sweep": sweep, **EXPERIMENT}, _dump_yaml, tuple(sweep)))
    command = draw(st.sampled_from([SWEEP, SWEEP, PLAN, DRY_RUN]))
    return Input(command, SETTINGS | {"experiment.yaml": text.encode("utf-8", errors="surrogatepass")})


@st.composite
def overrides(draw: Draw, material: Path) -> Input:
    """Draw values of ``--set``, of keys that exist and of others, for the commands that take them."""
    given: list[str] = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        key = draw(st.sampled_from([*_keys("experiment"), *_keys("profile")]))
        if not draw(st.integers(0, 3)):
            parts = key.split(".")
            change = draw(st.sampled_from(["properties", "0", "999999999999", "-1", "x", "", "9" * 5000, "²", "ݭ"]))
            parts[draw(st.integers(0, len(parts) - 1))] = change
            key = ".".join([*parts, *draw(st.sampled_from([(), (), ("x",), ("0",)]))])
        value = draw(
            st.one_of(
                st.sampled_from(VALUES),
                *[st.sampled_from(NUMBERS)] * 2,
                texts,
                st.text(alphabet="[]{},:#'\"&*!|>%@`\n -?", max_size=12),
            )
        )
        given += ["--set", draw(st.sampled_from([f"{key}={value}", f"{key}={value}", f" {key} = {value} ", key]))]
    arguments = [argument(each) for each in given]
    command = draw(st.sampled_from([DRY_RUN, DRY_RUN, DRY_RUN, PLAN, ("ask", f"{HERE}/run", "--context", "a")]))
    base = material / "l4" if command[0] == "ask" else None
    return Input((*command, *arguments), SETTINGS, base)


@st.composite
def topologies(draw: Draw, material: Path) -> Input:
    """Draw topology files, and numbers of peers that may not fit them."""
    lines = draw(
        st.lists(
            st.one_of(
                st.tuples(st.integers(0, 4), st.integers(0, 4)).map("{0[0]} {0[1]}".format),
                st.sampled_from(
                    ["0 1", "1 0", "# x", "", "0 1 2", "0", "-1 0", "0 ²", "1e3 0", "0\u20281", "9" * 5000 + " 0"]
                ),
                st.sampled_from(
                    ["0 99999999999999999999", "x y", "0,1", "[0, 1]", "\ufeff0 1", "٣ 1", "0 1 # c", "\x00 1"]
                ),
                st.text(max_size=12),
            ),
            max_size=8,
        )
    )
    data = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines).encode("utf-8", errors="surrogatepass")
    if not draw(st.integers(0, 4)):
        data = draw(damaged_bytes(data or b"0 1\n1 0\n"))
    many = draw(st.sampled_from([None, None, None, b"0 1\n" * 30_000, b"x\n" * 30_000, b"0" * 3_000_000]))
    file: Content = draw(st.sampled_from([many or data, many or data, many or data, *Instead]))
    count = draw(st.sampled_from(["1", "2", "3", "5", "40", "100000000", "1" * 30]))
    command = draw(st.sampled_from([DRY_RUN, DRY_RUN, PLAN]))
    arguments = (*command, "--set", f"peers.topology={HERE}/edges.txt", "--set", f"peers.count={count}")
    return Input(arguments, SETTINGS | {"edges.txt": file})


_OPTIONS = (
    *("--student", "--stage", "--epoch", "--seed", "--top-k", "--max-new-tokens", "--limit", "-n", "--max-length"),
    *("--temperature", "--device", "--kind", "--format", "--table", "--out", "--output", "--raw", "--path", "--metric"),
    *("--column", "--tokens", "--answer", "--device-memory", "--cluster", "--with", "--track", "--run-dir", "--task"),
)


@st.composite
def options(draw: Draw, material: Path) -> Input:
    """Draw values of options that do not fit."""
    command = draw(st.sampled_from([*CHEAP, *READERS, DRY_RUN, PLAN, ("data", "show", "mini.woz"), ("methods",)]))
    given: list[str] = []
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        value = argument(draw(st.one_of(st.sampled_from(VALUES), st.sampled_from(NUMBERS), texts)).strip('"'))
        given += [f"{draw(st.sampled_from(_OPTIONS))}={value}"]
    return Input((*command, *given), SETTINGS, material / "l4")
