"""Items by which a run is extended, as the command line names them: tasks, folders of data, or files with a stream."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ray_l4.config.document import Document, read_document
from ray_l4.config.fields import Strict
from ray_l4.config.loading import expand_task_names, resolve_paths, validate
from ray_l4.config.stream import StageSettings, TaskConfig
from ray_l4.errors import ConfigError

_YAML = (".yaml", ".yml")
_SETTABLE = tuple(
    f"{group}.{key}"
    for group, field in StageSettings.model_fields.items()
    for key in field.annotation.model_fields  # type: ignore[union-attr]
)
"""Settings that may differ from stage to stage."""


class _Fragment(Strict):
    """A part of an experiment file."""

    stream: list[TaskConfig]


def stream_items(
    given: Sequence[str], overrides: Sequence[str], metric: str | None = None, known: Collection[str] = ()
) -> list[TaskConfig]:
    """Return the items of a stream that are ``given`` as NAME, NAME=FOLDER or FILE.yaml (with a ``stream:``).

    ``overrides``: settings of their stages (``training.epochs=3``). ``metric``: that of tasks whose folder is given,
    unless they are ``known`` already. Raises ConfigError if something cannot be read, or may not differ from stage to
    stage.
    """
    items = [item for text in given for item in _items(text, metric, known)]
    settings = _settings(overrides)
    return [item.model_copy(update={"settings": _merged(item.settings, settings)}) for item in items]


def _items(text: str, metric: str | None, known: Collection[str]) -> Iterator[TaskConfig]:
    if text.endswith(_YAML):
        document = read_document(Path(text))
        unknown = sorted(document.tree.keys() - {"stream"})
        if unknown:
            raise ConfigError(
                f"{text}: has {unknown[0]!r} beside 'stream'; a run is extended by items of its stream, whose "
                "own settings are under 'settings' of each"
            )
        expand_task_names(document)
    else:
        name, equals, folder = text.partition("=")
        item: dict[str, object] = {"name": name}
        if equals:
            item |= {"path": folder} | ({} if metric is None or name in known else {"metric": metric})
        document = Document(text, Path.cwd(), {"stream": [item]})
    resolve_paths(document)
    yield from validate(_Fragment, document).stream


def _settings(overrides: Sequence[str]) -> StageSettings:
    document = Document("--set", Path.cwd())
    for text in overrides:
        key = text.partition("=")[0].strip()
        if key not in _SETTABLE:
            raise ConfigError(
                f"--set {text}: {key} is the same in all stages of a run; those that may differ are "
                f"{', '.join(_SETTABLE)}"
            )
        document.override(text)
    return validate(StageSettings, document)


def _merged(own: StageSettings, others: StageSettings) -> StageSettings:
    """Return the settings of an item, with ``others`` where they are given."""
    merged = {
        group: values | others.model_dump(exclude_none=True)[group]
        for group, values in own.model_dump(exclude_none=True).items()
    }
    return StageSettings.model_validate(merged)
