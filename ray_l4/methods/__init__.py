"""The methods as data: who learns from whom, from which labels, with which replay.

One training loop serves them all. A new method is a new row of the table and, at most, one new loss.
"""

from ray_l4.methods.settings import (
    TEACHER_METHOD,
    UNION,
    graph_of,
    num_students,
    resolved,
    stage_names,
    teachers_of,
)
from ray_l4.methods.table import METHODS, Method, get_method
from ray_l4.methods.topology import TOPOLOGIES, Topology, complete, isolated, taught

__all__ = [
    "METHODS",
    "TEACHER_METHOD",
    "TOPOLOGIES",
    "UNION",
    "Method",
    "Topology",
    "complete",
    "get_method",
    "graph_of",
    "isolated",
    "num_students",
    "resolved",
    "stage_names",
    "taught",
    "teachers_of",
]
