"""``bench exchange``: what it costs to exchange predictions, measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ray_l4.errors import ConfigError

app = typer.Typer(help="Measure what a choice costs on this machine.", no_args_is_help=True)


@app.callback()
def measurements() -> None:
    """Measure what a choice costs on this machine."""


@app.command()
def exchange(
    peers: Annotated[str, typer.Option(metavar="LIST", help="Numbers of students, such as 2,4,8.")] = "2",
    transports: Annotated[
        str, typer.Option(metavar="LIST", help="Ways of travelling (exchange.transport).")
    ] = "in_process,object_store,collective",
    codecs: Annotated[
        str, typer.Option(metavar="LIST", help="What is sent (exchange.codec).")
    ] = "dense,factored,topk,sampled,mean,auto",
    precision: Annotated[
        str, typer.Option(metavar="LIST", help="float32, float16: for the codecs that can be narrowed.")
    ] = "float32",
    vocab: Annotated[int, typer.Option(min=300, help="Entries of the vocabulary.")] = 50_257,
    examples: Annotated[int, typer.Option(min=1, help="Examples of a step.")] = 4,
    tokens: Annotated[int, typer.Option(min=8, help="Positions of an example that bear a prediction.")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="Blocks of the GPT-2 that learns (GPT-2 small: 12).")] = 2,
    width: Annotated[int, typer.Option(min=1, help="Its hidden size (GPT-2 small: 768).")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Steps in a round of 2 students; of N students, 2/N of it.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, each beside one in a single process.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch for each student.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="Share of a GPU for each student.")] = 0.0,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; a local one if not given.")] = None,
    spread: Annotated[bool, typer.Option("--spread", help="Every student on a node of its own.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead of a table.")] = False,
    output: Annotated[Path | None, typer.Option(help="Also write the JSON lines to this file.")] = None,
) -> None:
    """Train students on random tokens, and say what their exchange of predictions costs.

    Every transport takes turns with the same students in one process, on as many cores; times are medians by the
    students' own clocks, without the first steps. bytes_per_student_step is what a student hands to the exchange: its
    payload, once for each reader with the collective transport and once otherwise; wire_bytes_per_student_step is what
    leaves its process. wait_fraction is the share of a step between a student's forward pass and the moment it has all
    predictions; ratio_to_in_process compares step times; the gradient is compared with that of dense float32 on one
    batch of untrained students. The codec mean only exists with the transport collective, and is left out elsewhere.
    """
    numbers = [_number(part) for part in _listed(peers, "--peers")]
    ways = {
        "transports": _listed(transports, "--transports"),
        "codecs": _listed(codecs, "--codecs"),
        "precisions": _listed(precision, "--precision"),
    }
    if output is not None:
        _refuse_unwritable(output)

    from ray_l4.bench.exchange import measure  # torch and Ray take seconds to load
    from ray_l4.bench.grid import BenchGrid, StudentResources
    from ray_l4.bench.record import json_line
    from ray_l4.bench.view import table
    from ray_l4.bench.workload import Workload

    workload = Workload(vocab, examples, tokens, layers, width)
    grid = BenchGrid(
        workload=workload,
        peers=numbers,
        **ways,
        steps=steps,
        repeats=repeats,
        resources=StudentResources(threads, gpus, address, spread),
    )
    progress = Console(stderr=True, highlight=False)
    found = []
    for record in measure(grid, progress.print):
        found.append(record)
        if json_:
            typer.echo(json_line(record))
        if output is not None:
            output.write_text("".join(f"{json_line(own)}\n" for own in found), encoding="utf-8")
    if not json_:
        Console().print(table(found))


def _listed(text: str, option: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"{option} {text}: expected values with commas between them")
    return list(dict.fromkeys(parts))


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise ConfigError(f"--peers: {text} is not a number of students that teach each other; expected 2 or more")
    return int(text)


def _refuse_unwritable(path: Path) -> None:
    """Raise ConfigError before anything is measured, not after."""
    try:
        path.write_text("", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {path}: {error.strerror}; choose a file in a folder that exists") from error
