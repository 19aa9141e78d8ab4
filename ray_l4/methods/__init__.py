"""The methods as data: who learns from whom, from which labels, and with which replay.

One training loop serves all methods. A new method is a new row of the table and at most one new loss.
"""

from ray_l4.methods.extending import extended
from ray_l4.methods.fusing import fusing
from ray_l4.methods.peers import (
    all_models,
    init_seed,
    num_students,
    num_teachers,
    peer_experiment,
    peer_seed,
    peer_settings,
    scores_together,
)
from ray_l4.methods.settings import (
    TEACHER_METHOD,
    graph_name,
    graph_of,
    resolved,
    stages_of,
    teacher_experiment,
)
from ray_l4.methods.stages import ALL_TASKS, STAGE_KINDS, Stage, StageKind
from ray_l4.methods.table import METHODS, Method, get_method
from ray_l4.methods.topology import (
    TOPOLOGIES,
    Topology,
    complete,
    from_edges,
    graph_in_words,
    isolated,
    ring,
    star,
    taught,
)

__all__ = [
    "ALL_TASKS",
    "METHODS",
    "STAGE_KINDS",
    "TEACHER_METHOD",
    "TOPOLOGIES",
    "Method",
    "Stage",
    "StageKind",
    "Topology",
    "all_models",
    "complete",
    "extended",
    "from_edges",
    "fusing",
    "get_method",
    "graph_in_words",
    "graph_name",
    "graph_of",
    "init_seed",
    "isolated",
    "num_students",
    "num_teachers",
    "peer_experiment",
    "peer_seed",
    "peer_settings",
    "resolved",
    "ring",
    "scores_together",
    "stages_of",
    "star",
    "taught",
    "teacher_experiment",
]
