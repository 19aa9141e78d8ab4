"""A plan as tables for people, and as one object for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from ray_l4.planning.plan import Advice, Plan
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
"""Purposes of memory in words, in the order in which they are shown."""


def as_json(plan: Plan, advice: Advice | None) -> dict[str, Any]:
    """The whole plan in JSON values; sizes in bytes."""
    needs = plan.needs
    return {
        "profile": plan.profile,
        "fits": plan.fits,
        "problems": list(plan.problems),
        "placement": plan.placement,
        "batch": {**asdict(needs.batch), "at_once": needs.batch.at_once},
        "parameters": needs.parameters,
        "trainable": needs.trainable,
        "bytes_per_student_step": needs.published,
        "bytes_received_per_student_step": needs.received,
        "object_store_bytes": needs.object_store,
        "processes": [{**asdict(process), "device_bytes": process.device_bytes} for process in needs.processes],
        "devices": [{**asdict(device), "fits": device.fits} for device in plan.devices],
        "advice": asdict(advice) if advice else None,
    }


def tables(plan: Plan, advice: Advice | None, experiment: str) -> Iterator[RenderableType]:
    """What is printed for people, at most 80 columns wide."""
    yield _head(plan)
    yield ""
    yield _memory(plan)
    yield ""
    yield _devices(plan)
    yield ""
    yield (
        f"[bold green]fits[/] on {escape(plan.profile)}"
        if plan.fits
        else f"[bold red]does not fit[/] on {plan.profile}"
    )
    yield from (f"  {escape(problem)}" for problem in plan.problems)
    if advice is not None:
        yield from _advice(advice, experiment)


def _head(plan: Plan) -> Table:
    needs, shape = plan.needs, plan.needs.batch
    ranks = f" over {shape.shards} ranks" if shape.shards > 1 else ""
    pieces = f", {shape.at_once} at a time" if shape.at_once * shape.shards < shape.examples else ""
    trainable = "" if needs.trainable == needs.parameters else f", {needs.trainable:,} of them trainable"
    table = _plain("", "")
    table.show_header = False
    table.add_row("model", f"{needs.parameters:,} parameters{trainable}")
    table.add_row(
        "batch",
        f"{shape.examples} examples{ranks}{pieces}, of {shape.length} tokens, {shape.answer} of them the answer "
        f"({'worst case' if shape.worst_case else 'as given'})",
    )
    published, received = size_text(needs.published), size_text(needs.received)
    table.add_row("exchange", f"{published} published and {received} read per rank of a student and step")
    if needs.object_store:
        table.add_row("object store", f"{size_text(needs.object_store)} at a time")
    table.add_row("placement", escape(plan.placement))
    return table


def _memory(plan: Plan) -> Table:
    """What every kind of process holds on its device; equal ones stand in one column."""
    columns: dict[tuple[Any, ...], list[str]] = {}
    for process in plan.needs.processes:
        columns.setdefault(tuple(process.device.items()), []).append(process.role)
    table = _plain("memory of one process", *map(_together, columns.values()))
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
        there = "?" if device.there is None else size_text(device.there)
        sign = "" if device.there is None else "[green]ok[/]" if device.fits else "[red]too small[/]"
        table.add_row(device.name, _counted(device.holds), size_text(device.needed), there, sign)
    return table


def _advice(advice: Advice, experiment: str) -> Iterator[str]:
    fitting = [name for name, objection in advice.profiles.items() if not objection]
    for name in fitting:
        yield f"fits: ray-l4 run {escape(experiment)} --cluster {escape(name)}"
    for changes in advice.settings:
        yield f"fits: {' '.join(f'--set {change}' for change in changes)}"
    if not fitting and not advice.settings:
        yield "No other profile there fits, nor does any smaller setting: take larger devices, or a smaller model."
    for name, objection in advice.profiles.items():
        if objection:
            yield f"[dim]not: {escape(PurePath(name).name)}: {escape(objection)}[/]"


def _together(roles: Sequence[str]) -> str:
    """``student 0``, or ``student 0-3`` for roles that are alike."""
    numbers = [role.rpartition(" ")[2] for role in roles]
    same = len({role.rpartition(" ")[0] for role in roles}) == 1 and len(roles) > 1
    return f"{roles[0].rpartition(' ')[0]} {numbers[0]}-{numbers[-1]}" if same else ", ".join(roles)


def _counted(roles: Sequence[str]) -> str:
    return ", ".join(role if count == 1 else f"{count} x {role}" for role, count in Counter(roles).items())
