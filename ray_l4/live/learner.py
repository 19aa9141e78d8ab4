"""The part of a live service that learns: it watches the inbox, begins stages, and lets the gate judge them.

Whatever it does next follows from the run directory, so it may be killed at any moment: a stage that is under way is
resumed, an assignment of the inbox that is not in the stream yet is given to it, a finished stage that was not judged
is judged. One service at a time does so, and one command at a time works on the run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import yaml

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import LiveConfig
from ray_l4.config.loading import dump_yaml
from ray_l4.errors import RayL4Error, first_line
from ray_l4.live.child import Child
from ray_l4.live.gate import judge_finished
from ray_l4.methods import stages_of
from ray_l4.run.restart_budget import RestartBudget, RestartsSpentError, progress_on_disk
from ray_l4.store.atomic import write_text
from ray_l4.store.extension import finish_extension
from ray_l4.store.inbox.assignments import Waiting, pending, set_aside, take, waiting
from ray_l4.store.inbox.inbox import Inbox
from ray_l4.store.inbox.places import shelf_folder
from ray_l4.store.inbox.record import Assignment
from ray_l4.store.promotion import Decision
from ray_l4.store.run_directory import RunDirectory
from ray_l4.tasks.dropped_files import DroppedFiles
from ray_l4.tasks.inbox_tasks import inbox_tasks, stage_task

log = logging.getLogger("ray_l4.serve")

FEWEST_OF_A_NEW_TASK = 2
"""Examples of a new task from which on it is learned: one of them becomes its test set."""
PAUSE = 3.0
"""Seconds without a further example of a task after which those that wait are learned: whoever teaches one example
after another wants one stage for all."""
LONGEST_PAUSE = 60.0
"""Seconds since the first example that waits after which nothing more is waited for."""
_INTERVAL = 1.0
"""Seconds between two looks."""
_UNLEARNABLE = (2, 3, 4)
"""Exit codes of a command that would end in the same way again: what it is to learn is wrong."""
_STOP = 30.0
"""Seconds beyond ``timeouts.stop`` for a command to end."""


class LiveLearner:
    """Learns what arrives in the inbox of a run, one stage after another. ``look()`` does what is due now."""

    def __init__(self, run: RunDirectory, cluster: ClusterConfig, live: LiveConfig, say: Callable[[str], None]) -> None:
        """``cluster``: where students learn. ``say``: tells the user what happens, a line each."""
        self._run, self._cluster, self._live, self._say = run, cluster, live, say
        self._dropped = DroppedFiles(run, Inbox(run.path))
        self._child: Child | None = None
        self._budget = RestartBudget(cluster.restarts.most, cluster.restarts.backoff)
        self._not_before = 0.0
        self._settled = False
        """Whether no extension is recorded by half, which a command that was killed may leave."""
        self._told: set[str] = set()
        self._given_up = False
        """Whether learning failed again and again; it is left until the service is started anew."""
        self._taken: Assignment | None = None
        """The assignment of the inbox that the command is to learn."""

    @property
    def learning(self) -> int | None:
        """The process that learns now; None if there is none."""
        return None if self._child is None else self._child.pid

    def look(self) -> None:
        """Judge what has finished, see how the command that learns fares, or start the next one.

        Each is done even if another one cannot be: what is wrong is told.
        """
        self.judge()
        self._attempt(self._learn)

    def judge(self) -> None:
        """Let the gate judge what has finished."""
        self._attempt(self._decide)

    def _attempt(self, part: Callable[[], None]) -> None:
        try:
            part()
        except RayL4Error as error:
            self.tell_once(f"cannot go on as it should: {first_line(error)}")
            log.warning("%s", error)

    def _decide(self) -> None:
        for decision in judge_finished(self._run, self._live.max_forgetting):
            self._say(_said(self._run, decision))

    def _learn(self) -> None:
        if self._child is not None:
            self._see_how_it_fares(self._child)
        elif not self._given_up and time.monotonic() >= self._not_before:
            self._begin()

    def stop(self) -> None:
        """Stop the command that learns, if there is one; it writes a state, and can be resumed."""
        if self._child is not None:
            self._child.stop(self._cluster.timeouts.stop + _STOP)
            self._child.close()
            self._child = None

    def tell_once(self, line: str) -> None:
        """Tell the user something that is seen again and again."""
        if line not in self._told:
            self._told.add(line)
            self._say(line)

    def _see_how_it_fares(self, child: Child) -> None:
        code = child.poll()
        if code is None:
            return
        self._child, self._settled = None, False
        child.close()
        if code:
            self._say(f"learning ended with code {code}: {child.error()}")
            self._react(code, child.error())

    def _react(self, code: int, error: str) -> None:
        """Set an assignment aside that cannot be learned, or wait until the next attempt."""
        taken, self._taken = self._taken, None
        if taken is not None and code in _UNLEARNABLE and taken in pending(self._run):
            set_aside(self._run, [taken.number], error)
            self._say(f"what waited of {taken.task} is set aside, since it cannot be learned; the page says what to do")
            return
        try:
            self._not_before = time.monotonic() + self._budget.spend(progress_on_disk(self._run.path))
        except RestartsSpentError as spent:
            self._given_up = True
            self._say(f"learning is given up until the service is started anew: {spent}")

    def _begin(self) -> None:
        if not self._settled:
            with self._run.lock():
                finish_extension(self._run)
            self._settled = True
        if not self._run.is_complete():
            self._start("resume", str(self._run.path))
            return
        self._taken = self._next()
        if self._taken is not None:
            settings = {"settings": self._live.settings}
            item = stage_task(self._run, self._run.experiment(), self._taken).model_copy(update=settings)
            fragment = self._run.path / "data" / "next.yaml"
            stream = [item.model_dump(mode="json", exclude_unset=True)]
            write_text(fragment, yaml.safe_dump({"stream": stream}, allow_unicode=True))
            self._say(f"learning {item.name} from the inbox")
            self._start("extend", str(self._run.path), str(fragment))

    def _next(self) -> Assignment | None:
        """Return what is to be learned next: an assignment that an earlier attempt has taken, or a new one."""
        if not pending(self._run):
            ready = self._ready()
            return next(iter(take(self._run, ready)), None) if ready else None
        return next(iter(take(self._run, ())), None)

    def _ready(self) -> list[str]:
        """Return the tasks of which enough examples wait, once those in files have been taken in."""
        experiment = self._run.experiment()
        for problem in self._dropped.collect(inbox_tasks(self._run, experiment), experiment.data):
            self.tell_once(problem)
        least = self._live.min_examples
        found = []
        for name, task in inbox_tasks(self._run, experiment).tasks.items():
            own = waiting(self._run.path, name)
            enough = own.examples >= (min(FEWEST_OF_A_NEW_TASK, least) if task.is_new else least)
            if enough and not self._arriving(name, own):
                found.append(name)
        return found

    def _arriving(self, task: str, own: Waiting) -> bool:
        """Return whether further examples of a task are likely to come in a moment."""
        folder, now = shelf_folder(self._run.path, task, "segments"), time.time()
        first, last = (now - (folder / own.segments[place].name).stat().st_mtime for place in (0, -1))
        return last < PAUSE and first < LONGEST_PAUSE

    def _start(self, *arguments: str) -> None:
        profile = self._run.path / "live.yaml"
        write_text(profile, dump_yaml(self._cluster))
        output = self._run.log("learner-output")
        self._child = Child([*arguments, "--cluster", str(profile)], output, self._cluster.timeouts.control)


def _said(run: RunDirectory, decision: Decision) -> str:
    name = stages_of(run.experiment())[decision.stage].name
    what = "is served from now on" if decision.promoted else "is kept, and not served"
    return f"stage {decision.stage} ({name}) {what}: {decision.why}"


@contextmanager
def learning(learner: LiveLearner) -> Iterator[None]:
    """Within this context, a thread lets ``learner`` look every second. At the end the command that learns is stopped.

    What goes wrong is told, and does not end the service: answers go on.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_INTERVAL):
            try:
                learner.look()
            except Exception as error:  # whatever it is: answers go on, and it is tried again
                learner.tell_once(f"cannot learn now: {first_line(error)}")
                log.warning("cannot learn now", exc_info=error)
        learner.stop()

    # The command that learns ends with the thread that started it, so this one lives as long as the service.
    thread = threading.Thread(target=watch, name="learner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
