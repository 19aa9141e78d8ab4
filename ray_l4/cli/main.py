"""The command line: parse, call, print. What it does is done elsewhere."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from ray_l4 import __version__
from ray_l4.cli import bench, data, inspect_models, plan, reports, runs, sweeps
from ray_l4.errors import ConfigError, RayL4Error

app = typer.Typer(
    name="ray-l4",
    help="Language models that learn a stream of tasks together and teach each other at every step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
runs.register(app)
plan.register(app)
sweeps.register(app)
inspect_models.register(app)
reports.register(app)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ray-l4 {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options that go before a command."""


def main() -> None:
    """Entry point: one clear line and a code of its own for every error a user can mend, no traceback."""
    # A scheduler ends a job with SIGTERM; it deserves the same orderly end as Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(stderr=True, highlight=False)
    try:
        app(standalone_mode=True)
    except RayL4Error as error:
        console.print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        console.print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)
        sys.exit(RayL4Error.exit_code)
    except ValidationError as error:  # a value of an option that is out of bounds
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        console.print(f"[bold red]error:[/] {_escape(problems)}", soft_wrap=True)
        sys.exit(ConfigError.exit_code)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
