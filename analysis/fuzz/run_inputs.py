"""Inputs whose run directory or checkpoint is damaged, and texts that a model is asked."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hypothesis import strategies as st

from analysis.fuzz.inputs import HERE, Input, argument
from analysis.fuzz.material import METHODS
from analysis.fuzz.mutations import Content, Draw, Instead, damaged_file, texts


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
        found[name] = draw(damaged_file(name, path.read_bytes()) if path.is_file() else st.sampled_from(list(Instead)))
    return {f"run/{name}": content for name, content in found.items()}


@cache
def _files(run: Path) -> tuple[str, ...]:
    return tuple(sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()))


READERS = (
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
CHEAP = tuple(command for command in READERS if command[0] in ("table", "rescore", "ask"))


@st.composite
def finished_runs(draw: Draw, material: Path) -> Input:
    """Draw damage to a finished run, for the commands that read one."""
    run = material / draw(st.sampled_from(list(METHODS)))
    command = draw(st.sampled_from([*READERS, *CHEAP, *CHEAP, READERS[0]]))
    if command[0] == "figure":
        from ray_l4.report.figures.kinds import KINDS

        command += ("--kind", draw(st.sampled_from(list(KINDS))))
    return Input(command, draw(_damaged_run(run)), run)


@st.composite
def unfinished_runs(draw: Draw, material: Path) -> Input:
    """Draw damage to an unfinished run that is to be resumed."""
    run = material / f"{draw(st.sampled_from(list(METHODS)))}-unfinished"
    return Input(("resume", f"{HERE}/run"), draw(_damaged_run(run)), run)


@st.composite
def checkpoints(draw: Draw, material: Path) -> Input:
    """Draw damage to a checkpoint, for the commands that load one."""
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
def prompts(draw: Draw, material: Path) -> Input:
    """Draw texts for ``ask``, as arguments or on standard input."""
    context, question = (argument(draw(texts)) for _ in range(2))
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
