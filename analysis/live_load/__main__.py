"""Loads a live service, plays its users, kills its processes if asked to, and says what came of it.

::

    python -m analysis.live_load http://127.0.0.1:8000 --run RUN_DIR --corrections mini.sql=30 --new food=mini.rest:200

Questions are sent at a steady rate, whether or not earlier ones were answered; latency counts from when they were due.
Meanwhile users correct answers (``--corrections TASK=COUNT``: new questions of an embedded task that the run knows) and
teach new tasks (``--new TASK=EMBEDDED_TASK:COUNT``), and wait until all was learned, judged and swapped in, for
``--minutes`` again and again. A request that fails is tried again, as clients do, and counted.

The referee compares every answer with the stages that were promoted by then and with the answers by which its stage
was scored, and every example that was acknowledged with what is on disk and what stages learned. With ``--kill``, one
of the service, its replicas, the command that learns and its students is killed with -9 every ``--kill-every`` seconds,
for ``--minutes``; ``--start`` is the command line of the service, by which it is then started again, and has to name
its port.

Exit status 1 if a request failed, an example is lost or double, an answer is of the wrong model, or what was sent was
not learned in time. ``--json FILE`` writes every request and sample. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.command import exit_status
from analysis.live_load.account import Account, data, text
from analysis.live_load.asking import ROUTES
from analysis.live_load.processes import ServiceProcess
from analysis.live_load.questions import Lesson
from analysis.live_load.session import SessionOptions, session
from ray_l4.errors import ClusterError, ConfigError
from ray_l4.store.atomic import write_json
from ray_l4.store.run_directory import RunDirectory


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.live_load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("address", metavar="ADDRESS", help="address of the service, as in http://127.0.0.1:8000")
    parser.add_argument("--run", type=Path, required=True, metavar="RUN_DIR", help="the run that is served")
    parser.add_argument("--rate", type=float, default=4.0, help="questions a second")
    parser.add_argument("--corrections", type=Lesson.of, action="append", default=[], metavar="TASK=COUNT")
    parser.add_argument("--new", type=Lesson.of, action="append", default=[], metavar="TASK=EMBEDDED_TASK:COUNT")
    parser.add_argument("--minutes", type=float, default=0.0, help="go on for at least so long (default: one round)")
    parser.add_argument("--most-minutes", type=float, default=4.0, help="minutes for a round to be learned")
    parser.add_argument("--quiet", type=float, default=10.0, help="seconds without teaching before and after a round")
    parser.add_argument("--clients", choices=(*ROUTES, "both"), default="both", help="how questions are asked")
    parser.add_argument("--pid", type=int, help="process of the service, whose memory is noted")
    parser.add_argument("--start", metavar="COMMAND", help="command line that starts the service")
    parser.add_argument(
        "--log", type=Path, help="where --start's output goes (default: logs/service-output.log of the run)"
    )
    parser.add_argument("--kill", action="store_true", help="kill processes at random moments; needs --start")
    parser.add_argument("--kill-every", type=float, default=45.0, help="mean seconds from one kill to the next")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything")
    return parser


def _hold(given: argparse.Namespace) -> Account:
    """Hold the session.

    Raises ConfigError if options do not fit, RunDirectoryError if there is no run, ClusterError if the service does not
    answer.
    """
    if given.kill and not given.start:
        raise ConfigError("--kill needs --start, to start the service again")
    if given.rate <= 0:
        raise ConfigError(f"--rate {given.rate:g}: expected more than 0 questions a second")
    options = SessionOptions(
        address=given.address.rstrip("/"),
        run=given.run,
        rate=given.rate,
        corrections=given.corrections,
        new=given.new,
        minutes=given.minutes,
        most_minutes=given.most_minutes,
        quiet=given.quiet,
        kills=given.kill,
        kill_every=given.kill_every,
        seed=given.seed,
        routes=ROUTES if given.clients == "both" else (given.clients,),
    )
    if given.start:
        log = given.log or RunDirectory.open(given.run).log("service-output")
        process = ServiceProcess(None, shlex.split(given.start), log)
        process.start()
    else:
        process = ServiceProcess(given.pid)
    try:
        return asyncio.run(session(options, process))
    except TimeoutError:
        raise ClusterError(f"{given.address}: no service with a model answers there") from None
    finally:
        process.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    given = _parser().parse_args(arguments)
    held: list[Account] = []
    status = exit_status(lambda: held.append(_hold(given)))
    if not held:
        return status
    print(f"\n{text(held[0])}")
    if given.json is not None:
        write_json(given.json, data(held[0]))
    return int(bool(held[0].complaints))


if __name__ == "__main__":
    sys.exit(main())
