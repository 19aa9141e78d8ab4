"""The tasks of an inbox: those of the run, new ones, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.store.inbox.assignments import take
from ray_l4.store.inbox.inbox import Inbox
from ray_l4.store.inbox.places import inbox_of
from ray_l4.store.inbox.record import Assignment
from ray_l4.store.run_directory import RunDirectory
from ray_l4.tasks.inbox_tasks import MOST_NEW, InboxTasks, add_task, inbox_tasks, stage_task
from ray_l4.tasks.registry import load, metric_of
from tests.store.inbox_fixtures import KNOWN, example, new_run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return new_run(tmp_path / "run")


def found(run: RunDirectory) -> InboxTasks:
    return inbox_tasks(run, run.experiment())


def write(run: RunDirectory, place: str, text: str = "") -> Path:
    path = inbox_of(run.path) / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_tasks_are_those_of_the_run_and_a_folder_each(run: RunDirectory) -> None:
    assert [*found(run).tasks] == [KNOWN]
    write(run, "my task/a.jsonl")
    write(run, "a%2Fb/task.yaml", "metric: avg_rouge\nquestion: What is it?\ncolumns: {context: text}\n")
    write(run, ".hidden/task.yaml")
    tasks = found(run).tasks
    assert [*tasks] == [KNOWN, "a/b", "my task"]
    assert [task.is_new for task in tasks.values()] == [False, True, True]
    assert tasks["my task"].config.metric == "em"
    other = tasks["a/b"].config
    assert (other.metric, other.question, other.columns.context) == ("avg_rouge", "What is it?", "text")
    assert found(run).problems == ()


@pytest.mark.parametrize(
    ("place", "text", "why"),
    [
        ("t/task.yaml", "metric: rogue", "t/task.yaml: unknown metric 'rogue'. Did you mean"),
        ("t/task.yaml", "metrik: em", "t/task.yaml:1: metrik: unknown key"),
        ("t/task.yaml", "question: [1]", "t/task.yaml:1: question: "),
        ("t/task.yaml", "\npath: /x", "t/task.yaml:2: path: not a key of task.yaml"),
        ("t/task.yaml", "name: u", "t/task.yaml:1: name: not a key of task.yaml"),
        ("t/task.yaml", "metric: lfem", "metric 'lfem' needs more than texts"),
        ("t/task.yaml", "", "t/task.yaml: the file is empty"),
        ("t (2)/a.jsonl", "", "t (2): a new task cannot be named 't (2)': a number in brackets"),
        ("t%7Cu/a.jsonl", "", "cannot contain '|'"),
        ("..t/a.jsonl", "", None),
    ],
)
def test_a_folder_that_is_wrong_is_a_problem_and_no_task(
    run: RunDirectory, place: str, text: str, why: str | None
) -> None:
    write(run, place, text)
    assert [*found(run).tasks] == [KNOWN]
    assert len(found(run).problems) == (why is not None)
    assert why is None or why in found(run).problems[0]


def test_two_folders_of_one_task_may_not_both_describe_it(run: RunDirectory) -> None:
    write(run, "my task/task.yaml", "metric: em")
    write(run, "my%20task/task.yaml", "metric: em")
    assert "both describe the task 'my task'" in found(run).problems[0]


def test_a_task_of_the_run_is_described_as_long_as_its_file_is_there(run: RunDirectory) -> None:
    known = run.experiment().stream[0]
    write(run, f"{KNOWN}/task.yaml", "metric: nf1\nquestion: Which day?\ncolumns: {context: text}\n")
    task = found(run).tasks[KNOWN]
    assert (task.config.question, task.config.columns.context) == ("Which day?", "text")
    assert (task.config.metric, task.is_new, len(task.folders)) == (known.metric, False, 1)
    write(run, f"{KNOWN}/task.yaml", "columns: {context: text}\n")
    assert found(run).tasks[KNOWN].config.question == known.question
    write(run, f"{KNOWN}/task.yaml", "colums: {}\n")
    broken = found(run)
    assert "task.yaml:1: colums: unknown key" in broken.problems[0]
    assert (broken.tasks[KNOWN].config, broken.tasks[KNOWN].folders) == (known, ()), "its files wait"


@pytest.mark.parametrize("name", ["a (b)", "a (2) b", "a(2)", "(2)"])
def test_other_brackets_are_fine(run: RunDirectory, name: str) -> None:
    assert add_task(run, run.experiment(), name)


def test_no_more_new_tasks_than_may_wait_are_begun(run: RunDirectory) -> None:
    for number in range(MOST_NEW):
        write(run, f"task {number}/a.jsonl")
    with pytest.raises(ConfigError, match=r"100 new tasks wait in the inbox.*remove folders of .*inbox"):
        add_task(run, run.experiment(), "one more")
    assert not add_task(run, run.experiment(), "task 7"), "it is there"
    (inbox_of(run.path) / "task 7" / "a.jsonl").unlink()
    (inbox_of(run.path) / "task 7").rmdir()
    assert add_task(run, run.experiment(), "one more")


def test_a_new_task_is_begun_once(run: RunDirectory) -> None:
    assert add_task(run, run.experiment(), "to/day", "nf1", "Which day: what is it?")
    assert not add_task(run, run.experiment(), "to/day", "nf1", "Which day: what is it?")
    config = found(run).tasks["to/day"].config
    assert (config.metric, config.question) == ("nf1", "Which day: what is it?")
    with pytest.raises(ConfigError, match="with other settings"):
        add_task(run, run.experiment(), "to/day")


@pytest.mark.parametrize(
    ("name", "metric", "why"),
    [
        ("..", None, "begins with a dot"),
        ("a|b", None, "cannot contain"),
        (" ", None, "a name that can be seen"),
        ("x" * 200, None, "too long"),
        (KNOWN, None, "the run has a task 'mini.woz' already"),
        ("new", "rogue", "unknown metric"),
        (f"{KNOWN} (2)", None, "names a stage of a task that comes back"),
    ],
)
def test_an_unfit_task_is_refused(run: RunDirectory, name: str, metric: str | None, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        add_task(run, run.experiment(), name, metric)
    assert not inbox_of(run.path).exists()


def test_a_stage_reads_what_was_assigned_to_it(run: RunDirectory) -> None:
    add_task(run, run.experiment(), "to/day", question="What?")
    Inbox(run.path).add("to/day", [example(number) for number in range(10)])
    Inbox(run.path).add(KNOWN, [example(1)])
    new, known = (stage_task(run, run.experiment(), given) for given in take(run, ["to/day", KNOWN]))
    data = run.experiment().data
    assert (metric_of(new), metric_of(known)) == ("em", "joint_goal_em")
    assert (load(new, "train", data).num_rows, load(new, "test", data).num_rows) == (8, 2)
    assert load(known, "train", data).to_pylist()[0] == {
        "context": "context 1",
        "question": "right?",
        "answer": "yes",
        "references": ["yes"],
        "task": KNOWN,
        "sample_id": example(1).id,
        "meta": "",
    }


def test_a_stage_of_a_task_that_is_gone_says_why(run: RunDirectory) -> None:
    gone = Assignment(number=1, task="gone", segments=[], when="")
    with pytest.raises(RunDirectoryError, match="no folder of the inbox is that of the task 'gone'"):
        stage_task(run, run.experiment(), gone)
    write(run, "gone/task.yaml", "metric: rogue")
    with pytest.raises(RunDirectoryError, match="unknown metric 'rogue'"):
        stage_task(run, run.experiment(), gone)
