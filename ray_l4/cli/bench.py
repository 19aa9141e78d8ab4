"""``bench``: measure on this machine what exchange, steps, generation and runs cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ray_l4.cli.options import OutputOption, split_list
from ray_l4.errors import ConfigError

if TYPE_CHECKING:
    from ray_l4.bench.grid import BenchGrid

PeersOption = Annotated[str, typer.Option(metavar="LIST", help="Numbers of students, such as 2,4,8.")]
TransportsOption = Annotated[str, typer.Option(metavar="LIST", help="How payloads travel (exchange.transport).")]
CodecsOption = Annotated[str, typer.Option(metavar="LIST", help="How predictions are encoded (exchange.codec).")]
PrecisionOption = Annotated[
    str, typer.Option(metavar="LIST", help="float32, float16; codecs without a choice use float32.")
]
VocabOption = Annotated[int, typer.Option(min=300, help="Size of the vocabulary.")]
ExamplesOption = Annotated[int, typer.Option(min=1, help="Examples in a step.")]
TokensOption = Annotated[int, typer.Option(min=8, help="Predicted positions in an example.")]
LayersOption = Annotated[int, typer.Option(min=1, help="Layers of the GPT-2 that learns (GPT-2 small: 12).")]
WidthOption = Annotated[int, typer.Option(min=1, help="Hidden size of the GPT-2 that learns (GPT-2 small: 768).")]
StepsOption = Annotated[
    int, typer.Option(min=1, help="Steps in a round of 2 students; a round of N students has 2/N as many.")
]
RepeatsOption = Annotated[int, typer.Option(min=1, help="Rounds, each followed by one in a single process.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="PyTorch threads of each student.")]
GpusOption = Annotated[float, typer.Option(min=0, help="GPUs, or share of one, for each student.")]
AddressOption = Annotated[
    str | None, typer.Option(help="Address of a running Ray cluster; a local cluster if not given.")
]
SpreadOption = Annotated[bool, typer.Option("--spread", help="Place every student on a node of its own.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line instead of a table.")]

ModelOption = Annotated[str, typer.Option(help="Size of the two students: small, large or gpt2.")]
TasksOption = Annotated[str, typer.Option(metavar="LIST", help="Tasks whose lengths examples have.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Examples in a step.")]
MeasuredOption = Annotated[int, typer.Option("--steps", min=1, help="Measured steps of each side.")]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda.")]
ArithmeticOption = Annotated[str, typer.Option("--precision", help="Of matrix products: float32 or bfloat16.")]
CompileOption = Annotated[bool, typer.Option("--compile", help="Compile the blocks of the students here.")]
WorkOption = Annotated[str, typer.Option(help="What is generated: replay (sampled) or answers (greedy).")]
GeneratedOption = Annotated[int, typer.Option(min=1, help="Examples that are generated in a round.")]
ChunkOption = Annotated[int, typer.Option(min=1, help="Examples that are generated together.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="Rounds of each side.")]
LedgerOption = Annotated[Path, typer.Option(help="File of JSON lines to which the result is appended.")]
DataOption = Annotated[
    Path | None, typer.Option(help="Folder of the real data (raw/); by default $RAY_L4_DATA, else known lengths.")
]
LEDGER = Path("runs/bench.jsonl")

app = typer.Typer(help="Measure what exchange, steps, generation and runs cost.", no_args_is_help=True)


@app.callback()
def measurements() -> None:
    """Measure on this machine what exchange, steps, generation and runs cost."""


@app.command()
def exchange(
    peers: PeersOption = "2",
    transports: TransportsOption = "in_process,object_store,collective",
    codecs: CodecsOption = "dense,factored,topk,sampled,mean,auto",
    precision: PrecisionOption = "float32",
    vocab: VocabOption = 50_257,
    examples: ExamplesOption = 4,
    tokens: TokensOption = 128,
    layers: LayersOption = 2,
    width: WidthOption = 64,
    steps: StepsOption = 3,
    repeats: RepeatsOption = 3,
    threads: ThreadsOption = 1,
    gpus: GpusOption = 0.0,
    address: AddressOption = None,
    spread: SpreadOption = False,
    json_: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Train students on random tokens and measure the cost of exchanging their predictions.

    Every transport alternates with the same students in one process on the same number of cores. Times are medians by
    the students' own clocks, without the first steps. bytes_per_student_step is what a student hands to the exchange:
    its payload, once per reader with the collective transport and once otherwise; wire_bytes_per_student_step is what
    leaves its process. wait_fraction is the share of a step between the end of a student's forward pass and the arrival
    of all predictions it needs. ratio_to_in_process compares step times. The gradient is compared with that of dense
    float32 on one batch of untrained students. The codec mean exists only with the transport collective and is skipped
    elsewhere.
    """
    numbers = [_number(part) for part in _distinct(peers, "--peers")]
    ways = {
        "transports": _distinct(transports, "--transports"),
        "codecs": _distinct(codecs, "--codecs"),
        "precisions": _distinct(precision, "--precision"),
    }
    if output is not None:
        _check_writable(output)

    from ray_l4.bench.grid import BenchGrid, StudentResources
    from ray_l4.bench.workload import Workload

    grid = BenchGrid(
        workload=Workload(vocab, examples, tokens, layers, width),
        peers=numbers,
        **ways,
        steps=steps,
        repeats=repeats,
        resources=StudentResources(threads, gpus, address, spread),
    )
    _measure(grid, json_, output)


@app.command()
def step(
    model: ModelOption = "small",
    batch: BatchOption = 8,
    threads: ThreadsOption = 1,
    steps: MeasuredOption = 10,
    tasks: TasksOption = "woz.en,wikisql",
    data: DataOption = None,
    device: DeviceOption = "cpu",
    precision: ArithmeticOption = "float32",
    compile_: CompileOption = False,
    json_: JsonOption = False,
    ledger: LedgerOption = LEDGER,
) -> None:
    """Compare a step of two students with the same step as one would write it from the paper.

    The textbook's step (ray_l4/bench/textbook.py) is one process with two models, padded batches, the logits of all
    positions and PyTorch's losses. Both sides have the same weights and batches of random tokens with the lengths of
    real examples, and take turns step by step, each in a process of its own. CPU time counts all threads; speedups are
    medians over pairs of steps; memory is the peak above what loading the libraries took.
    """
    from ray_l4.bench.lengths import drawn, real_lengths
    from ray_l4.bench.step import BEYOND, measure
    from ray_l4.bench.step_sides import SHAPES, StepCase

    if model not in SHAPES:
        raise ConfigError(f"--model: no model is called {model!r}; expected {', '.join(SHAPES)}")
    if precision not in ("float32", "bfloat16"):
        raise ConfigError(f"--precision: {precision!r}; expected float32 or bfloat16")
    lengths, measured = real_lengths(_distinct(tasks, "--tasks"), SHAPES[model].vocabulary, data)
    examples = drawn(lengths, batch * (steps + BEYOND), seed=0)
    arithmetic: Literal["float32", "bfloat16"] = "bfloat16" if precision == "bfloat16" else "float32"
    case = StepCase(model, batch, examples, threads, device, arithmetic, compile=compile_)
    row = measure(case, steps, _progress()) | {"tasks": tasks, "lengths_measured": measured}
    _show(row, json_, ledger)


@app.command()
def generate(
    work: WorkOption = "replay",
    model: ModelOption = "small",
    examples: GeneratedOption = 128,
    chunk: ChunkOption = 64,
    threads: ThreadsOption = 1,
    rounds: RoundsOption = 3,
    device: DeviceOption = "cpu",
    json_: JsonOption = False,
    ledger: LedgerOption = LEDGER,
) -> None:
    """Compare the decoding engine with Transformers' generate, on replay or on answers.

    Both sides continue the same prompts with the same weights, and take turns, each in a process of its own. Lengths
    vary like those of pseudo-examples. Speedups are medians over the rounds; greedy_outputs_equal compares all tokens.
    """
    from ray_l4.bench.generate import GenerateCase, measure
    from ray_l4.bench.step_sides import SHAPES

    if model not in SHAPES:
        raise ConfigError(f"--model: no model is called {model!r}; expected {', '.join(SHAPES)}")
    if work not in ("replay", "answers"):
        raise ConfigError(f"--work: {work!r}; expected replay or answers")
    case = GenerateCase(model, "replay" if work == "replay" else "answers", examples, chunk, threads, device)
    _show(measure(case, rounds, _progress()), json_, ledger)


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="Experiment file: l4, with a model from scratch.")],
    cluster: Annotated[Path, typer.Option(help="Cluster profile of the run.")],
    json_: JsonOption = False,
    ledger: LedgerOption = LEDGER,
) -> None:
    """Compare a whole run with the textbook's: training, replay, answers, start and end.

    The textbook's run is one process that does one thing after another, with Transformers' generate. The two run one
    after the other. Speedups are per step, since replay may differ by some examples. CPU time is that of the whole
    machine; spans are seconds by kind of work, over all processes.
    """
    from ray_l4.bench.whole_run import measure

    _show(measure(experiment, cluster, _progress()), json_, ledger)


def _show(row: Mapping[str, Any], as_json: bool, ledger: Path) -> None:
    """Append a result to the ledger, and print it."""
    import json

    from rich.console import Console

    from ray_l4.bench.ledger import append
    from ray_l4.bench.view import listing

    append(ledger, row)
    if as_json:
        typer.echo(json.dumps(row))
    else:
        Console().print(listing(row))


def _progress() -> Callable[[str], None]:
    from rich.console import Console

    return Console(stderr=True, highlight=False).print


def _measure(grid: BenchGrid, as_json: bool, output: Path | None) -> None:
    """Measure every case, and print what was found: each record at once as JSON, or all of them in a table."""
    from rich.console import Console

    from ray_l4.bench.exchange import measure
    from ray_l4.bench.record import json_line
    from ray_l4.bench.view import table

    progress = Console(stderr=True, highlight=False)
    found = []
    for record in measure(grid, progress.print):
        found.append(record)
        if as_json:
            typer.echo(json_line(record))
        if output is not None:
            output.write_text("".join(f"{json_line(own)}\n" for own in found), encoding="utf-8")
    if not as_json:
        Console().print(table(found))


def _distinct(text: str, option: str) -> list[str]:
    """Split a comma-separated value and drop repetitions."""
    return list(dict.fromkeys(split_list(text, option)))


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise ConfigError(f"--peers: {text} is not a number of students that teach each other; expected 2 or more")
    return int(text)


def _check_writable(path: Path) -> None:
    """Raise ConfigError now, not after the measurements, if ``path`` cannot be written."""
    try:
        path.write_text("", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {path}: {error.strerror}; choose a file in a folder that exists") from error
