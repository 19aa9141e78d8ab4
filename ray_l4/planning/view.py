"""The views of a plan: tables for the terminal, one JSON object for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from ray_l4.planning.batch_shape import BatchShape
from ray_l4.planning.devices import Device
from ray_l4.planning.plan import Advice, Plan
from ray_l4.planning.processes import Process
from ray_l4.planning.units import size_text

_PURPOSES = {
    "weights": "weights",
    "gathered": "layers gathered from ranks",
    "gradients": "gradients",
    "optimiser": "optimiser",
    "guard": "guard of earlier tasks",
    "activations": "activations",
    "logits": "logits",
    "loss": "buffers of the loss",
    "backward": "buffers of backward",
    "exchange": "predictions exchanged",
    "cache": "decoding",
    "evaluators": "evaluators",
    "checkpoint": "checkpoint",
    "heap": "gaps in the heap",
    "process": "process, libraries",
}
"""Purpose of memory -> title of its row, in the order of the rows."""


def as_json(plan: Plan, advice: Advice | None) -> dict[str, Any]:
    """Return the whole plan as JSON values. Sizes are in bytes."""
    requirements = plan.requirements
    return {
        "profile": plan.profile,
        "fits": plan.fits,
        "problems": list(plan.problems),
        "placement": plan.placement,
        "batch": _batch_json(requirements.batch),
        "parameters": requirements.parameters,
        "trainable": requirements.trainable,
        "bytes_per_student_step": requirements.published,
        "bytes_received_per_student_step": requirements.received,
        "object_store_bytes": requirements.object_store,
        "disk": {**asdict(plan.disk), "needed": plan.disk.needed, "free": plan.free_disk},
        "processes": [_process_json(process) for process in requirements.processes],
        "devices": [_device_json(device) for device in plan.devices],
        "advice": asdict(advice) if advice else None,
    }


def _batch_json(batch: BatchShape) -> dict[str, Any]:
    return {
        "examples": batch.examples,
        "shards": batch.ranks,
        "micro_batch": batch.micro_batch,
        "length": batch.length,
        "answer": batch.answer,
        "worst_case": batch.worst_case,
        "of_data": batch.of_data,
        "decoded": batch.decoded or batch.length,
        "at_once": batch.at_once,
    }


def _process_json(process: Process) -> dict[str, Any]:
    return {**asdict(process), "device_bytes": process.device_bytes}


def _device_json(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "holds": device.roles,
        "needed": device.needed,
        "there": device.available,
        "fits": device.fits,
    }


def tables(plan: Plan, advice: Advice | None, experiment: str) -> Iterator[RenderableType]:
    """Yield what is printed in a terminal, at most 80 columns wide. ``experiment``: the file, for commands to copy."""
    yield _head(plan)
    yield ""
    yield _memory(plan)
    yield ""
    yield _devices(plan)
    yield ""
    yield (
        f"[bold green]fits[/] on {escape(plan.profile)}"
        if plan.fits
        else f"[bold red]does not fit[/] on {escape(plan.profile)}"
    )
    yield from (f"  {escape(problem)}" for problem in plan.problems)
    if advice is not None:
        yield from _advice(advice, experiment)


def _head(plan: Plan) -> Table:
    requirements, batch = plan.requirements, plan.requirements.batch
    ranks = f" over {batch.ranks} ranks" if batch.ranks > 1 else ""
    at_once = f", {batch.at_once} at a time" if batch.at_once * batch.ranks < batch.examples else ""
    frozen = requirements.trainable < requirements.parameters
    trainable = f", {requirements.trainable:,} of them trainable" if frozen else ""
    table = _plain("", "")
    table.show_header = False
    table.add_row("model", f"{requirements.parameters:,} parameters{trainable}")
    table.add_row(
        "batch",
        f"{batch.examples} examples{ranks}{at_once}, of {batch.length} tokens, {batch.answer} of them the answer "
        f"({_bound(batch)})",
    )
    published, received = size_text(requirements.published), size_text(requirements.received)
    table.add_row("exchange", f"{published} published and {received} read per step by each rank of a student")
    if requirements.object_store:
        table.add_row("object store", f"{size_text(requirements.object_store)} at a time")
    table.add_row("placement", escape(plan.placement))
    table.add_row("disk", _disk(plan))
    return table


def _disk(plan: Plan) -> str:
    need = plan.disk
    teachers = f", {need.teachers} of teachers" if need.teachers else ""
    guards = f", {size_text(need.guards)} for guards" if need.guards else ""
    states = f", {need.states} states of {size_text(need.state)}"
    free = "" if plan.free_disk is None else f"; {size_text(plan.free_disk)} are free"
    return (
        f"{size_text(need.needed)} for checkpoints and states: {need.checkpoints} of each student{teachers}, "
        f"{size_text(need.checkpoint)} each{guards}{states}{free}"
    )


def _bound(batch: BatchShape) -> str:
    """Return what the lengths of a batch are."""
    if not batch.worst_case:
        return "as given"
    return "worst case of the data" if batch.of_data else "worst case that the model allows"


def _memory(plan: Plan) -> Table:
    """Return the memory of every kind of process on its device; equal ones share a column."""
    columns: dict[tuple[Any, ...], list[str]] = {}
    for process in plan.requirements.processes:
        columns.setdefault(tuple(process.device.items()), []).append(process.role)
    table = _plain("memory of one process", *map(_joined_roles, columns.values()))
    for column in table.columns[1:]:
        column.justify = "right"
    for purpose, words in _PURPOSES.items():
        sizes = [dict(parts).get(purpose, 0) for parts in columns]
        if any(sizes):
            table.add_row(words, *(size_text(size) if size else "" for size in sizes))
    totals = [size_text(sum(dict(parts).values())) for parts in columns]
    table.add_row("[bold]all[/]", *(f"[bold]{total}[/]" for total in totals))
    return table


def _plain(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for title in titles:
        table.add_column(title)
    return table


def _devices(plan: Plan) -> Table:
    table = _plain("device", "holds", "needs", "has", "")
    for column in table.columns[2:4]:
        column.justify = "right"
    for device in plan.devices:
        unknown = device.available is None
        available = "?" if device.available is None else size_text(device.available)
        verdict = "" if unknown else "[green]ok[/]" if device.fits else "[red]too small[/]"
        table.add_row(device.name, _counted_roles(device.roles), size_text(device.needed), available, verdict)
    return table


def _advice(advice: Advice, experiment: str) -> Iterator[str]:
    fitting = [name for name, objection in advice.profiles.items() if not objection]
    for name in fitting:
        yield f"fits: ray-l4 run {escape(experiment)} --cluster {escape(name)}"
    for changes in advice.settings:
        yield f"fits: {' '.join(f'--set {change}' for change in changes)}"
    if not fitting and not advice.settings:
        yield "No other profile of that folder and no smaller setting fits: use larger devices or a smaller model."
    for name, objection in advice.profiles.items():
        if objection:
            yield f"[dim]not: {escape(PurePath(name).name)}: {escape(objection)}[/]"


def _joined_roles(roles: Sequence[str]) -> str:
    """Return the roles as a column title: ``student 0-3`` if they differ in their number only."""
    numbers = [role.rpartition(" ")[2] for role in roles]
    same = len({role.rpartition(" ")[0] for role in roles}) == 1 and len(roles) > 1
    return f"{roles[0].rpartition(' ')[0]} {numbers[0]}-{numbers[-1]}" if same else ", ".join(roles)


def _counted_roles(roles: Sequence[str]) -> str:
    """Return the roles with their numbers: ``2 x student 0, evaluator``."""
    return ", ".join(role if count == 1 else f"{count} x {role}" for role, count in Counter(roles).items())
