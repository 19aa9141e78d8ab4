"""Experiments are frozen: a change is a copy."""

from __future__ import annotations

from typing import Any


def changed(record: Any, **values: object) -> Any:
    """A copy with other values, checked like a new one, that still knows which values were set.

    Raises pydantic.ValidationError if the values do not go together.
    """
    return type(record).model_validate({name: getattr(record, name) for name in record.model_fields_set} | values)
