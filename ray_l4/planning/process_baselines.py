"""Memory of processes before they hold a model. Sizes are in bytes."""

from __future__ import annotations

_MIB = 2**20

LEARNER_PROCESS = 460 * _MIB
"""A process that has imported PyTorch, transformers and this package and trained a tiny model: resident memory,
measured with ``python -m analysis.benchmarks.memory --baseline``."""

RAY_WORKER = 540 * _MIB
"""The same as a Ray worker, which is also close to the coordinator and the command line: resident memory of the actors
of ``ray-l4 run`` on ``cluster_configs/laptop.yaml`` with a model of 50,000 parameters."""

RAY_ITSELF = 1000 * _MIB
"""Ray's own processes on a node (control store, raylet, agents, log monitor): their total resident memory in that
run."""

GPU_CONTEXT = 512 * _MIB
"""GPU memory of the CUDA context and its libraries, per process. NOT measured, for want of a GPU: the usual order of
magnitude."""

GPU_HOST = 2048 * _MIB
"""Main memory of a process that uses a GPU, apart from the tensors that it holds there. NOT measured either."""

CHECKPOINT_COPIES = 2
"""Copies of the weights in memory while safetensors writes a checkpoint: the bytes of every tensor, and all of them
joined."""
