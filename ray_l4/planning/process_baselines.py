"""What processes take before a model is in them: measured once, and named. All in bytes."""

from __future__ import annotations

_MIB = 2**20

LEARNER_PROCESS = 460 * _MIB
"""A process that has loaded PyTorch, transformers and this package and trained a tiny model. Resident memory, measured
with ``python -m analysis.benchmarks.memory --baseline``."""

RAY_WORKER = 540 * _MIB
"""The same as a worker of Ray; the coordinator and the command line come close. Resident memory of the actors in a run
of ``ray-l4 run`` on ``cluster_configs/laptop.yaml`` with a model of 50,000 parameters."""

RAY_ITSELF = 1000 * _MIB
"""Ray's own processes on a node (control store, raylet, agents, log monitor): resident memory in that run, added up."""

GPU_CONTEXT = 512 * _MIB
"""What the CUDA context and its libraries take of a GPU, for each process. NOT measured, for want of
one: the usual order of magnitude."""

GPU_HOST = 2048 * _MIB
"""Memory of the host for a process that uses a GPU, apart from what it holds for the run. NOT measured either."""

SERIALISED = 2
"""Copies of the weights while safetensors writes a checkpoint: every tensor's bytes, and all of them as one."""
