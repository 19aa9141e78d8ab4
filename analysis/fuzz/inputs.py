"""Inputs by kind: what is damaged, which commands read it, and with which exit codes they may end."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st

from analysis.fuzz.material import EXPERIMENT, METHODS, PROFILE
from analysis.fuzz.mutations import (
    NUMBERS,
    VALUES,
    Content,
    Draw,
    Instead,
    damaged_bytes,
    damaged_file,
    damaged_table,
    damaged_tree,
    texts,
)

HERE = "@HERE@"
"""Stands for the folder of the input in its command line."""


@dataclass(frozen=True)
class Input:
    """A command line and the files that it reads."""

    arguments: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    """Path relative to the input's folder -> what is there."""
    base: Path | None = None
    """Run directory of which the input's folder has a copy in ``run``."""
    stdin: bytes = b""


@dataclass(frozen=True)
class Kind:
    """A kind of inputs."""

    name: str
    inputs: Callable[[Path], st.SearchStrategy[Input]]
    """Returns a strategy for the inputs, given the folder of the material."""
    codes: frozenset[int]
    """Exit codes that they may end with."""
    share: int
    """Number of inputs in proportion to other kinds."""


_DRY_RUN = ("run", f"{HERE}/experiment.yaml", "--dry-run", "--cluster", f"{HERE}/profile.yaml")
_PLAN = ("plan", f"{HERE}/experiment.yaml", "--cluster", f"{HERE}/profile.yaml", "--tokens", "16", "--answer", "4")
_SWEEP = (
    "sweep",
    f"{HERE}/experiment.yaml",
    "--dry-run",
    "--cluster",
    f"{HERE}/profile.yaml",
    "--out",
    f"{HERE}/sweep",
)
_SETTINGS = {"experiment.yaml": yaml.safe_dump(EXPERIMENT).encode(), "profile.yaml": yaml.safe_dump(PROFILE).encode()}


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
def _experiments(draw: Draw, material: Path) -> Input:
    damaged = draw(_settings_text("experiment"))
    command = draw(st.sampled_from([_DRY_RUN, _DRY_RUN, _PLAN, _SWEEP, (*_DRY_RUN, "--with", f"{HERE}/overlay.yaml")]))
    where = "overlay.yaml" if "--with" in command else "experiment.yaml"
    return Input(command, _SETTINGS | {where: damaged})


@st.composite
def _profiles(draw: Draw, material: Path) -> Input:
    return Input(
        draw(st.sampled_from([_DRY_RUN, _PLAN])), _SETTINGS | {"profile.yaml": draw(_settings_text("profile"))}
    )


@st.composite
def _protocols(draw: Draw, material: Path) -> Input:
    sweep = {
        "title": "t",
        "table": None,
        "variants": {"a": {"method": "l4"}, "b": {"training.epochs": 1}},
        "orders": [["mini.woz", "mini.rest"]],
        "grid": {"optim.lr": [1e-3, 1e-4]},
        "seeds": 2,
    }
    text = draw(damaged_tree({"sweep": sweep, **EXPERIMENT}, _dump_yaml, tuple(sweep)))
    command = draw(st.sampled_from([_SWEEP, _SWEEP, _PLAN, _DRY_RUN]))
    return Input(command, _SETTINGS | {"experiment.yaml": text.encode("utf-8", errors="surrogatepass")})


@st.composite
def _overrides(draw: Draw, material: Path) -> Input:
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
    arguments = [_argument(each) for each in given]
    command = draw(st.sampled_from([_DRY_RUN, _DRY_RUN, _DRY_RUN, _PLAN, ("ask", f"{HERE}/run", "--context", "a")]))
    base = material / "l4" if command[0] == "ask" else None
    return Input((*command, *arguments), _SETTINGS, base)


def _argument(text: str) -> str:
    """Return a text as the argument of a process has it: without NUL, and bytes that are not UTF-8 escaped."""
    return os.fsdecode(text.replace("\0", "").encode("utf-8", errors="surrogatepass"))[:120_000]


@st.composite
def _topologies(draw: Draw, material: Path) -> Input:
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
    file: Content = draw(st.sampled_from([many or data, many or data, many or data, *list(_instead())]))
    count = draw(st.sampled_from(["1", "2", "3", "5", "40", "100000000", "1" * 30]))
    command = draw(st.sampled_from([_DRY_RUN, _DRY_RUN, _PLAN]))
    arguments = (*command, "--set", f"peers.topology={HERE}/edges.txt", "--set", f"peers.count={count}")
    return Input(arguments, _SETTINGS | {"edges.txt": file})


def _instead() -> tuple[Content, ...]:
    return tuple(Instead)


_ROW = {"context": "one two three", "question": "which", "answer": "two", "id": "1", "meta": {"a": [1]}}
_CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
    ],
    "references": ["yes", "no"],
}
_SQUAD = {
    "version": "2",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "c",
                    "qas": [{"id": "1", "question": "q", "answers": [{"text": "a"}], "is_impossible": False}],
                }
            ],
        }
    ],
}


@st.composite
def _data(draw: Draw, material: Path) -> Input:
    """Draw the files of a task: JSONL, CSV, Parquet, chat data, or those of the reference implementations."""
    name, data = draw(st.sampled_from([_jsonl, _csv, _parquet, _chat, _squad]).flatmap(lambda make: make()))
    if not draw(st.integers(0, 3)):
        data = draw(damaged_file(name, data) if isinstance(data, bytes) else st.just(data))
    good = json.dumps(_CHAT if b"messages" in (data if isinstance(data, bytes) else b"") else _ROW).encode() + b"\n"
    suffix = Path(name).suffix
    test = (
        {"own/own_to_squad-test-v2.0.json": json.dumps(_SQUAD).encode()}
        if "squad" in name
        else {"own/test.jsonl": good}
    )
    files = {f"own/{name}": data} | test
    options = draw(
        st.sampled_from([(), (), ("--question", "what"), ("--column", "answer=x"), ("--column", "id=id"), ("-n", "50")])
    )
    show = ("data", "show", "own", "--path", f"{HERE}/own", *options)
    own = {
        "name": "own",
        "path": "own",
        "metric": draw(st.sampled_from(["em", "lfem", "avg_rouge", "nf1"])),
        "train": "all",
        "test": "all",
    }
    experiment = yaml.safe_dump(EXPERIMENT | {"stream": [own], "data": {"max_bad_fraction": 1}}).encode()
    return Input(
        draw(st.sampled_from([show, show, _DRY_RUN])),
        _SETTINGS | files | {"experiment.yaml": experiment, f"own/other{suffix}": b""},
    )


@st.composite
def _jsonl(draw: Draw) -> tuple[str, bytes]:
    lines = [json.dumps(_ROW | {"id": str(number)}) for number in range(3)]
    lines[draw(st.integers(0, 2))] = draw(damaged_tree(_ROW, json.dumps, ("context", "answer", "references", "id")))
    return "train.jsonl", "\n".join(lines).encode("utf-8", errors="surrogatepass")


@st.composite
def _chat(draw: Draw) -> tuple[str, bytes]:
    other = {"prompt": _CHAT["messages"][:2], "completion": "x", "references": ["x"]}
    tree = draw(st.sampled_from([_CHAT, other]))
    damaged = draw(damaged_tree(tree, json.dumps, ("role", "content", "messages", "prompt", "completion", "name")))
    return "train.jsonl", f"{json.dumps(tree)}\n{damaged}\n{json.dumps(tree)}".encode("utf-8", errors="surrogatepass")


@st.composite
def _csv(draw: Draw) -> tuple[str, bytes]:
    cell = st.one_of(texts, st.sampled_from(['"', '""', '"a', 'a"b', "a,b", "\n", "\r", "\t", "=1+1", '"' * 9]))
    rows = draw(st.lists(st.lists(cell, max_size=5), max_size=5))
    name, comma = draw(st.sampled_from([("train.csv", ","), ("train.tsv", "\t"), ("train.csv", ";")]))
    head = draw(
        st.sampled_from(["context,question,answer", "context,question,answer,id", "context,context,answer", "", "a"])
    )
    text = "\n".join([head.replace(",", comma), *(comma.join(row) for row in rows)])
    return name, text.encode("utf-8", errors="surrogatepass")


@st.composite
def _parquet(draw: Draw) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    rows = [_ROW | {"answer": ["two", "2"]}] * 3
    pq.write_table(pa.Table.from_pylist([row | {"id": str(number)} for number, row in enumerate(rows)]), buffer)
    return "train.parquet", draw(damaged_table(buffer.getvalue()))


@st.composite
def _squad(draw: Draw) -> tuple[str, bytes]:
    return "own_to_squad-train-v2.0.json", draw(damaged_tree(_SQUAD)).encode("utf-8", errors="surrogatepass")


@st.composite
def _damaged_run(
    draw: Draw, run: Path, skip: tuple[str, ...] = ("tensorboard/", "logs/", "report.")
) -> dict[str, Content]:
    """Draw the files of a run directory that are damaged, JSON and Parquet more often than others."""
    files = [name for name in _files(run) if not name.startswith(skip)]
    found: dict[str, Content] = {}
    for _ in range(draw(st.sampled_from([1, 1, 1, 1, 2]))):
        groups = sorted({name.partition("/")[0] for name in files})
        group = draw(st.sampled_from([*groups, *(name for name in groups if name.endswith(".json"))]))
        name = draw(st.sampled_from([each for each in files if each.partition("/")[0] == group]))
        if not draw(st.integers(0, 25)):
            name = group  # the whole folder
        path = run / name
        found[name] = draw(damaged_file(name, path.read_bytes()) if path.is_file() else st.sampled_from(_instead()))
    return {f"run/{name}": content for name, content in found.items()}


@cache
def _files(run: Path) -> tuple[str, ...]:
    return tuple(sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()))


_READERS = (
    *[("report", f"{HERE}/run"), ("report", f"{HERE}/run", "--full", "--each")],
    *[("table", f"{HERE}/run"), ("table", f"{HERE}/run", "--over-epochs", "--format", "csv")],
    *[("rescore", f"{HERE}/run"), ("rescore", f"{HERE}/run", "--dry-run"), ("resume", f"{HERE}/run")],
    *[
        ("evaluate", f"{HERE}/run", "--student", "0", "--limit", "1"),
        ("generate", f"{HERE}/run", "--task", "mini.rest", "-n", "1"),
    ],
    *[
        ("ask", f"{HERE}/run", "--task", "mini.woz", "--context", "a b"),
        ("figure", f"{HERE}/run", "--out", f"{HERE}/f.svg"),
    ],
)
_CHEAP = tuple(command for command in _READERS if command[0] in ("table", "rescore", "ask"))


@st.composite
def _finished_runs(draw: Draw, material: Path) -> Input:
    run = material / draw(st.sampled_from(list(METHODS)))
    command = draw(st.sampled_from([*_READERS, *_CHEAP, *_CHEAP, _READERS[0]]))
    if command[0] == "figure":
        from ray_l4.report.figures.kinds import KINDS

        command += ("--kind", draw(st.sampled_from(list(KINDS))))
    return Input(command, draw(_damaged_run(run)), run)


@st.composite
def _unfinished_runs(draw: Draw, material: Path) -> Input:
    run = material / f"{draw(st.sampled_from(list(METHODS)))}-unfinished"
    return Input(("resume", f"{HERE}/run"), draw(_damaged_run(run)), run)


@st.composite
def _checkpoints(draw: Draw, material: Path) -> Input:
    run = material / "l4"
    folder = "checkpoints/stage-1/epoch-2/student-0"
    files = dict(draw(_damaged_run(run / folder, ())).items())
    moved = {name.replace("run/", f"run/{folder}/", 1): content for name, content in files.items()}
    model = draw(st.sampled_from([f"{HERE}/run/{folder}", f"{HERE}/run"]))
    ask = ("ask", model, "--task", "mini.woz", "--context", "a b")
    generate = ("generate", model, "--task", "mini.woz", "-n", "1", "--student", "0")
    commands = [ask, ask, generate, ("evaluate", model, "--task", "mini.woz", "--student", "0", "--limit", "1")]
    return Input(draw(st.sampled_from(commands)), moved, run)


@st.composite
def _prompts(draw: Draw, material: Path) -> Input:
    """Draw texts for ``ask``, as arguments or on standard input."""
    context, question = (_argument(draw(texts)) for _ in range(2))
    piped = draw(
        st.one_of(st.binary(max_size=60), texts.map(lambda text: text.encode("utf-8", errors="surrogatepass")))
    )
    model = f"{HERE}/run"
    asked = draw(
        st.sampled_from(
            [
                ("ask", model, "--task", "mini.woz", f"--context={context}", f"--question={question}"),
                ("ask", model, "--task", "mini.woz", "--context", "-", f"--question={question}"),
                ("ask", model, "--task", "mini.woz", f"--context={context}"),
                ("ask", model, "--task", "mini.woz"),
                ("ask", model, f"--task={context}", "--context=a"),
                ("ask", model, "--task", "mini.woz", "--context=a", f"--system={context}"),
                ("generate", model, f"--task={context}", "-n", "1"),
                ("ask", f"{context}", f"--task={question}", "--context=a"),
            ]
        )
    )
    return Input(asked, {}, material / "l4", piped)


_OPTIONS = (
    *("--student", "--stage", "--epoch", "--seed", "--top-k", "--max-new-tokens", "--limit", "-n", "--max-length"),
    *("--temperature", "--device", "--kind", "--format", "--table", "--out", "--output", "--raw", "--path", "--metric"),
    *("--column", "--tokens", "--answer", "--device-memory", "--cluster", "--with", "--track", "--run-dir", "--task"),
)


@st.composite
def _options(draw: Draw, material: Path) -> Input:
    """Draw values of options that do not fit."""
    command = draw(st.sampled_from([*_CHEAP, *_READERS, _DRY_RUN, _PLAN, ("data", "show", "mini.woz"), ("methods",)]))
    given: list[str] = []
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        value = _argument(draw(st.one_of(st.sampled_from(VALUES), st.sampled_from(NUMBERS), texts)).strip('"'))
        given += [f"{draw(st.sampled_from(_OPTIONS))}={value}"]
    return Input((*command, *given), _SETTINGS, material / "l4")


_ALL = frozenset({0, 2, 3, 4, 5})
KINDS = {
    kind.name: kind
    for kind in (
        Kind("experiment", _experiments, _ALL | {1, 6}, 5),
        Kind("profile", _profiles, frozenset({0, 1, 2, 6}), 2),
        Kind("protocol", _protocols, _ALL | {1, 6}, 2),
        Kind("set", _overrides, _ALL | {1, 6}, 5),
        Kind("topology", _topologies, frozenset({0, 1, 2, 6}), 2),
        Kind("data", _data, frozenset({0, 2, 3}), 6),
        Kind("finished-run", _finished_runs, _ALL, 6),
        Kind("unfinished-run", _unfinished_runs, _ALL | {6}, 4),
        Kind("checkpoint", _checkpoints, _ALL, 3),
        Kind("prompt", _prompts, _ALL, 3),
        Kind("options", _options, _ALL | {1, 6}, 2),
    )
}
"""Kinds by name. 1 stands for ``plan`` of what does not fit."""
