"""``live``, ``promote`` and ``status``: a run that goes on learning while it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_l4.cli.model_options import DeviceOption, TrustOption, check_device
from ray_l4.cli.options import ClusterOption, SetOption, split_overrides
from ray_l4.cli.serving import HostOption, KeysOption, LimitOption, PortOption, ReplicasOption, limits_of
from ray_l4.errors import ConfigError

RunArgument = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run.")]
_LIVE = "live."


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(live)
    app.command()(promote)
    app.command()(status)


def live(
    run: RunArgument,
    port: PortOption = 8000,
    host: HostOption = "127.0.0.1",
    api_key_file: KeysOption = None,
    limit: LimitOption = None,
    replicas: ReplicasOption = 1,
    cluster: ClusterOption = None,
    set_: SetOption = None,
    trust_custom_code: TrustOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Serve a run and go on learning: corrections and new tasks from its inbox, one stage after another.

    --cluster says where students learn (as the run did, if not given); --set live.KEY=VALUE changes when they do.
    """
    from ray_l4.config.loading import load_cluster
    from ray_l4.live.service import live as run_live
    from ray_l4.live.settings import live_settings
    from ray_l4.serve.opening import ServeOptions, refuse_missing_extra
    from ray_l4.store.run_directory import RunDirectory

    check_device(device)
    refuse_missing_extra()
    for_experiment, for_cluster = split_overrides(set_)
    strange = next((text for text in for_experiment if not text.startswith(_LIVE)), None)
    if strange is not None:
        raise ConfigError(f"--set {strange}: a live service has keys of live.* and cluster.*; a run keeps its others")
    directory = RunDirectory.open(run)
    profile = load_cluster(cluster, for_cluster) if cluster or for_cluster else directory.cluster()
    settings = live_settings(directory.experiment(), [text.removeprefix(_LIVE) for text in for_experiment])
    options = ServeOptions(
        run,
        host,
        port,
        limits_of(limit or ()),
        follow=True,
        api_key_file=api_key_file,
        device=device,
        trusts_code=trust_custom_code,
    )
    if replicas == 1:
        from ray_l4.serve.one_process import log_to_stderr

        log_to_stderr()
    run_live(options, replicas, profile, settings, typer.echo)


def promote(
    run: RunArgument,
    stage: Annotated[int, typer.Option(min=0, help="Stage to serve from now on, from 0: a later one, or an earlier.")],
) -> None:
    """Choose by hand which stage of a run is served."""
    from ray_l4.methods import stages_of
    from ray_l4.store.promotion import decide, served_stage
    from ray_l4.store.run_directory import RunDirectory

    directory = RunDirectory.open(run)
    before = served_stage(directory)
    decide(directory, stage, promoted=True, by="hand", why="asked for with ray-l4 promote")
    names = [one.name for one in stages_of(directory.experiment())]
    was = "" if before is None else f", in place of stage {before} ({names[before]})"
    typer.echo(f"stage {stage} ({names[stage]}) is served from now on{was}")


def status(run: RunArgument) -> None:
    """Say what of a run is served, what it is learning, and what waits in its inbox."""
    from ray_l4.serve.overview import overview
    from ray_l4.serve.overview_text import overview_text
    from ray_l4.store.run_directory import RunDirectory

    typer.echo(overview_text(overview(RunDirectory.open(run))))
