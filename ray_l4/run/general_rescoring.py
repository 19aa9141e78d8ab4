"""Perplexities of a finished run on a general text, measured from its checkpoints and the models that it began with."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from ray_l4.config.experiment import OF_GENERAL_TEXT, ExperimentConfig
from ray_l4.config.loading import dump_yaml, load_experiment
from ray_l4.errors import ConfigError
from ray_l4.learner.general_text import window_losses
from ray_l4.learner.initial_model import initial_model
from ray_l4.learner.inspection import device_named
from ray_l4.learner.model_config import sequence_limit
from ray_l4.learner.models import arithmetic, load_folder
from ray_l4.methods import all_models, get_method, graph_of, peer_experiment
from ray_l4.run.general_scoring import general_record
from ray_l4.setup.begun import record_general
from ray_l4.setup.inspected import check_trust
from ray_l4.setup.setup import general_of
from ray_l4.store.atomic import write_text
from ray_l4.store.general import GENERAL, read_general, start_cell, write_general
from ray_l4.store.run_directory import START, Cell, RunDirectory
from ray_l4.text.tokenizer import TaskTokenizer

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def general_experiment(run: RunDirectory, overrides: Sequence[str]) -> ExperimentConfig:
    """Return the experiment of a finished run with the overrides (``evaluation.general=FILE``).

    Raises:
        RunDirectoryError: the run has not finished.
        ConfigError: another setting is given, or there is no general text then.
    """
    run.summary()
    other = next((text for text in overrides if text.partition("=")[0].strip() not in OF_GENERAL_TEXT), None)
    if other is not None:
        raise ConfigError(
            f"--set {other}: the results of a finished run have the settings with which it learned; expected "
            f"{' or '.join(OF_GENERAL_TEXT)}"
        )
    experiment = load_experiment(run.path / "config.yaml", overrides)
    if experiment.evaluation.general is None:
        raise ConfigError(f"{run.path}: has no general text; give one: --set evaluation.general=FILE")
    return experiment


def measure_general(
    run: RunDirectory, experiment: ExperimentConfig, device: str, *, write: bool, trusts_code: bool = False
) -> Iterator[tuple[Cell, float | None]]:
    """Measure what a finished run lacks: the models that students began with, and checkpoints that were scored.

    Yields the perplexity of each, None if it is not finite. Unless ``write`` is false, it is written at once, so that a
    command that is stopped loses little, and ``config.yaml`` gets the general text in the end. A checkpoint that is not
    on disk any more (``checkpoint.keep``) is left out.

    Args:
        experiment: what ``general_experiment`` returned.
        device: auto, cpu or cuda.
        trusts_code: let code that comes with a model run.

    Raises DataError if the text cannot be used, ModelError if a model cannot be loaded.
    """
    check_trust(experiment, str(run.path), trusts_code)
    place = device_named(device)
    tokenizer = TaskTokenizer.load(run.path / "tokenizer", as_begun=True)
    text = general_of(experiment, tokenizer, min(sequence_limit(model) for model in all_models(experiment)))
    assert text is not None, "as general_experiment returns it"
    with run.lock() if write else nullcontext():
        known = {cell for cell, record in read_general(run).items() if record["digest"] == text.digest}
        for cell in _cells(run, experiment):
            if cell in known:
                continue
            model = _model(run, experiment, cell, tokenizer).to(place)
            nll = math.fsum(_losses(experiment, cell, model, place, text.windows))
            record = general_record(text, cell, nll)
            if write:
                write_general(run, cell, record)
            yield cell, record["perplexity"]
        if write:
            record_general(run, text)
            write_text(run.path / "config.yaml", dump_yaml(experiment))


def _cells(run: RunDirectory, experiment: ExperimentConfig) -> list[Cell]:
    """Return the cells that a run with a general text has, as far as their models are there."""
    scored = sorted({Cell(cell.stage, cell.epoch, cell.student, GENERAL) for cell in run.scores()})
    there = [cell for cell in scored if run.checkpoint(cell.stage, cell.epoch, cell.student).is_dir()]
    if len(there) < len(scored):
        log.warning("%s: %d of %d checkpoints are not there any more", run.path, len(scored) - len(there), len(scored))
    fused = get_method(experiment.method).has_peer_teachers  # it begins with the weights of another run
    return [*([] if fused else map(start_cell, sorted(graph_of(experiment).students))), *there]


def _model(run: RunDirectory, experiment: ExperimentConfig, cell: Cell, tokenizer: TaskTokenizer) -> PreTrainedModel:
    if cell.stage == START:
        return initial_model(experiment, cell.student, tokenizer)
    own = peer_experiment(experiment, cell.student).model
    folder = run.checkpoint(cell.stage, cell.epoch, cell.student)
    return load_folder(folder, own.dtype, own.trust_custom_code)[0]


def _losses(
    experiment: ExperimentConfig, cell: Cell, model: PreTrainedModel, place: torch.device, windows: Sequence[np.ndarray]
) -> list[float]:
    with arithmetic(peer_experiment(experiment, cell.student).model, place):
        return window_losses(model, windows)
