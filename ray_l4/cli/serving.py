"""``serve``: answer questions over HTTP with a run's best student, or with a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ray_l4.cli.model_options import DeviceOption, TrustOption, check_device
from ray_l4.cli.options import ClusterOption
from ray_l4.errors import ConfigError, nearest

LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit", metavar="KEY=VALUE", help="Change a limit, such as queue=100 (docs/LIVE.md lists them). Repeatable."
    ),
]


ReplicasOption = Annotated[int, typer.Option(min=1, help="Copies of the model, each in a process of Ray Serve.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")]
HostOption = Annotated[str, typer.Option(help="Address to listen at; another than this machine needs API keys.")]
KeysOption = Annotated[Path | None, typer.Option(help="File of API keys, one on each line, that nobody else can read.")]


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(serve)


def serve(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR|CHECKPOINT", help="A run, whose promoted stage is served, or the folder of a checkpoint."
        ),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", help="Serve later stages of the run as soon as it has promoted them.")
    ] = False,
    replicas: ReplicasOption = 1,
    port: PortOption = 8000,
    host: HostOption = "127.0.0.1",
    api_key_file: KeysOption = None,
    cluster: ClusterOption = None,
    limit: LimitOption = None,
    trust_custom_code: TrustOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Serve a model over HTTP, in OpenAI's format.

    Without --replicas and --cluster, everything runs in this process, without Ray.
    """
    from ray_l4.serve.opening import ServeOptions, refuse_missing_extra

    check_device(device)
    refuse_missing_extra()
    limits = limits_of(limit or ())
    options = ServeOptions(model, host, port, limits, follow, api_key_file, device, trust_custom_code)
    options.run  # noqa: B018  # raises if the folder is neither a run nor a checkpoint
    if replicas == 1 and cluster is None:
        from ray_l4.serve.one_process import log_to_stderr
        from ray_l4.serve.one_process import serve as serve_here

        log_to_stderr()
        serve_here(options, typer.echo)
    else:
        from ray_l4.config.loading import load_cluster
        from ray_l4.serve.replicas import serve as serve_on_ray

        serve_on_ray(options, load_cluster(cluster), replicas, typer.echo)


def limits_of(given: Sequence[str]) -> dict[str, object]:
    """Return the limits that the command line sets. Raises ConfigError if one is unknown or unfit."""
    from ray_l4.serve.limits import Limits

    found: dict[str, object] = {}
    for text in given:
        key, _, value = text.partition("=")
        name = key.strip()
        if name not in Limits.model_fields:
            raise ConfigError(f"--limit {text}: there is no limit {name!r}. {nearest(name, Limits.model_fields)}")
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"--limit {text}: expected a number after =") from None
    Limits.model_validate(found)
    return found
