"""The entry point: parse the command line, call a command, report its failure."""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":  # python -m ray_l4.cli.main: as python -m ray_l4.cli, which handles signals before all else
    runpy.run_module("ray_l4.cli", run_name="__main__", alter_sys=True)
    sys.exit()

from typing import Annotated

import typer

from ray_l4.cli import (
    ask,
    bench,
    data,
    debug_batch,
    evaluate,
    extend,
    fuse,
    inspect_models,
    interruption,
    living,
    methods,
    plan,
    reports,
    runs,
    serving,
    supervision,
    sweeps,
    tables,
)
from ray_l4.cli.failures import end_at_once, explain, print_failure, set_debug
from ray_l4.cli.home import HomeGroup
from ray_l4.errors import SessionLostError
from ray_l4.workers.log import DEBUG_VARIABLE

app = typer.Typer(
    name="ray-l4",
    help="Language models that learn a stream of tasks together and teach each other at every step.",
    no_args_is_help=True,
    cls=HomeGroup,
    pretty_exceptions_enable=False,
)
runs.register(app)
extend.register(app)
fuse.register(app)
methods.register(app)
plan.register(app)
sweeps.register(app)
evaluate.register(app)
ask.register(app)
serving.register(app)
living.register(app)
inspect_models.register(app)
reports.register(app)
debug_batch.register(app)
tables.register(app)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        from ray_l4 import __version__

        typer.echo(f"ray-l4 {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", envvar=DEBUG_VARIABLE, help="Print the full traceback of an error, a worker's included."
        ),
    ] = False,
) -> None:
    """Handle the options that precede a command."""
    set_debug(debug)


def main() -> None:
    """Run the command line and exit.

    An error that the user can correct ends in one message and the exit code of its class; Ctrl-C and SIGTERM, in code
    130, as do SIGUSR1 and SIGHUP. Any other exception is a defect of the program and leaves with Python's traceback.
    """
    with interruption.heeded():
        supervision.begin()
        try:
            app(standalone_mode=True)
        except Exception as error:
            supervision.say_end(session_lost=isinstance(error, SessionLostError))
            if interruption.arrived():
                return  # an error that the interruption caused, such as that of an import, is none of the user's
            explained = explain(error)
            if explained is None:
                raise
            message, code = explained
            print_failure(error, message)
            if isinstance(error, SessionLostError):
                end_at_once(code)
            sys.exit(code)
        finally:
            supervision.say_end()
