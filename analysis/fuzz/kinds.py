"""The kinds of inputs, how many there are of each, and with which exit codes they may end."""

from __future__ import annotations

from analysis.fuzz import data_inputs, run_inputs, settings_inputs
from analysis.fuzz.inputs import Kind

_ALL = frozenset({0, 2, 3, 4, 5})
KINDS = {
    kind.name: kind
    for kind in (
        Kind("experiment", settings_inputs.experiments, _ALL | {1, 6}, 5),
        Kind("profile", settings_inputs.profiles, frozenset({0, 1, 2, 6}), 2),
        Kind("protocol", settings_inputs.protocols, _ALL | {1, 6}, 2),
        Kind("set", settings_inputs.overrides, _ALL | {1, 6}, 5),
        Kind("topology", settings_inputs.topologies, frozenset({0, 1, 2, 6}), 2),
        Kind("data", data_inputs.data, frozenset({0, 2, 3}), 6),
        Kind("finished-run", run_inputs.finished_runs, _ALL, 6),
        Kind("unfinished-run", run_inputs.unfinished_runs, _ALL | {6}, 4),
        Kind("checkpoint", run_inputs.checkpoints, _ALL, 3),
        Kind("prompt", run_inputs.prompts, _ALL, 3),
        Kind("options", settings_inputs.options, _ALL | {1, 6}, 2),
    )
}
"""Kinds by name. 1 stands for ``plan`` of what does not fit."""
