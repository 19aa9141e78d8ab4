from __future__ import annotations

import pytest

from analysis.command import exit_status
from ray_l4.errors import DataError


def test_a_mistake_of_the_user_is_one_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise DataError("no such file")

    assert exit_status(work) == DataError.exit_code != 0
    assert capsys.readouterr() == ("", "error: no such file\n")


def test_work_that_is_done_is_zero() -> None:
    done: list[int] = []
    assert exit_status(lambda: done.append(1)) == 0
    assert done == [1]


def test_a_defect_of_the_program_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 // 0)
