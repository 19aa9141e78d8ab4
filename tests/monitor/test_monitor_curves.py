"""Curves in event files: steps are counted over all stages, and not twice in a stage that is restarted."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ray_l4.monitor.curves import Curves
from ray_l4.store.run_directory import TOGETHER, Cell


def test_steps_are_counted_over_all_stages_and_once_if_a_stage_is_restarted(tmp_path: Path) -> None:
    log = Curves(tmp_path, steps_before=10)
    for stage in range(2):
        log.begin_stage(2)
        for step in range(2):
            log.log_step(step, {"student-0": {"loss": float(stage), "tokens": 5.0}})
    log.restart_stage()
    log.begin_stage(2)
    log.log_step(0, {"student-0": {"loss": 7.0}})
    log.log_score(Cell(1, 1, 0, "mini.sql"), 50.0)
    log.log_score(Cell(1, 1, TOGETHER, "mini.sql"), 60.0)
    log.log_general(Cell(1, 1, 1, ""), 20.0)
    log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    names = {"loss/student-0", "score/mini.sql/student-0", "score/mini.sql/together", "general_perplexity/student-1"}
    assert set(events.Tags()["scalars"]) == names, "only curves"
    losses = [(event.step, event.value) for event in events.Scalars("loss/student-0")]
    assert losses == [(10, 0.0), (11, 0.0), (12, 1.0), (13, 1.0), (12, 7.0)]
    assert [(event.step, event.value) for event in events.Scalars("score/mini.sql/student-0")] == [(12, 50.0)]
