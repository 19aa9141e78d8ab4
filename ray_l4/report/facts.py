"""What a reader must know about a run to judge its scores: method, model, data, date and software."""

from __future__ import annotations

from ray_l4.config.model import ModelConfig
from ray_l4.config.stream_names import item_names
from ray_l4.methods import METHODS
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.run_result import order_title
from ray_l4.store.begun_with import begun_versions

UNKNOWN = "not recorded"


def facts(run: FinishedRun) -> list[tuple[str, str]]:
    """Return the main facts about a run as name and value."""
    versions = begun_versions(run.directory)
    software = [f"{'Python' if name == 'python' else name} {version}" for name, version in versions.items()]
    return [
        ("method", run.method + (f": {METHODS[run.method].summary}" if run.method in METHODS else "")),
        ("variant", run.variant),
        ("stream", order_title(run.stream)),
        ("students", str(len(run.students))),
        ("who learns from whom", run.graph),
        ("model", _models(run)),
        ("parameters", _parameters(run)),
        ("epochs", ", ".join(map(str, dict.fromkeys(run.epochs)))),
        ("seed", str(run.seed)),
        ("started", str(run.manifest.get("started", UNKNOWN))),
        ("wall time", f"{run.wall_seconds:.0f} s"),
        ("software", ", ".join(software) or UNKNOWN),
        ("platform", str(run.manifest.get("platform", UNKNOWN))),
        ("run directory", run.path.resolve().name),
    ]


def data_sizes(run: FinishedRun) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table of the examples of each task, and the metric that scores it."""
    stream = [item.name for item in run.experiment.stream]
    training, test = (run.manifest.get(f"{kind}_examples", {}) for kind in ("training", "test"))
    rows = [
        [
            item,
            *(str(kind.get(name, "–")) for kind, name in ((training, item), (test, task))),
            run.metrics.get(task, "–"),
        ]
        for item, task in zip(item_names(stream), stream, strict=True)
    ]
    return ["task", "training examples", "test examples", "metric"], rows


def model_name(model: ModelConfig) -> str:
    """Return the name of a model, for people."""
    scratch = model.from_scratch
    name = f"{scratch.layers}-layer GPT-2 of width {scratch.width} from scratch" if scratch else str(model.name)
    return name if model.lora is None else f"{name} with LoRA of rank {model.lora.rank}"


def _models(run: FinishedRun) -> str:
    """Return the name of the model, or of each student's where they differ."""
    common = run.experiment.model
    own = [model_name(peer.model or common) for peer in run.experiment.peers.each] or [model_name(common)]
    return own[0] if len(set(own)) == 1 else "; ".join(f"student {student}: {name}" for student, name in enumerate(own))


def _parameters(run: FinishedRun) -> str:
    """Return the number of parameters of a student; of adapters, if these are what its checkpoint holds."""
    counts = {student: _count(count) for student, count in run.parameters.items()}
    if len(set(counts.values())) > 1:
        return "; ".join(f"student {student}: {text}" for student, text in counts.items())
    return next(iter(counts.values()), UNKNOWN)


def _count(counted: tuple[int, bool]) -> str:
    count, adapters = counted
    return f"{count:,}" + (" in adapters, the model's own not counted" if adapters else "")
