"""The rows of an Arrow table as a sequence of Python objects, each of which is made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import pyarrow as pa

from ray_l4.tasks.slices import slices_of

T = TypeVar("T")


@dataclass(frozen=True)
class Rows(Sequence[T], Generic[T]):
    """An object for each row of ``table``. It can be pickled if ``make`` can."""

    table: pa.Table
    make: Callable[[Mapping[str, Any]], T]
    """Makes an object from the values of a row."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self[row] for row in chosen]
        return self.make(self.table.slice(chosen, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[T]:
        for part in slices_of(self.table):
            yield from map(self.make, part.to_pylist())
