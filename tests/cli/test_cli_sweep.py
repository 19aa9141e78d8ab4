"""``ray-l4 sweep``: every protocol loads, a second call repeats nothing, and a stopped sweep is continued."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from transformers import GPT2Config
from typer.testing import CliRunner, Result

from ray_l4.cli.main import app
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.strict_yaml import parse
from ray_l4.errors import ConfigError, RayL4Error, RunDirectoryError
from ray_l4.store.run_directory import RunDirectory
from ray_l4.sweep.directory import SweepDirectory
from ray_l4.sweep.trials import SweepRequest, Trial, expand_protocol
from ray_l4.sweep.view import SweepView
from tests.cli.background_command import END_LIMIT, RAY_AGENTS, BackgroundCommand
from tests.cli.cli_fixtures import IN_PROCESS, REPOSITORY, SMALL, InThisProcess, ray_l4, refused

EXPERIMENTS = REPOSITORY / "launch" / "experiments"
SMALL_MODEL = ("--with", EXPERIMENTS / "small-model.yaml")
SMALL_TABLE5 = ("--with", EXPERIMENTS / "small-model-table5.yaml")
GPT2_SHAPE = (EXPERIMENTS / "gpt2-shape.yaml",)
GPT2_TABLE5 = (*GPT2_SHAPE, EXPERIMENTS / "gpt2-shape-table5.yaml")
PROTOCOLS = sorted(path.name for pattern in ("l4-*.yaml", "l2kd-*.yaml") for path in EXPERIMENTS.glob(pattern))
ROOM = ("--set", "cluster.ray.num_cpus=4", "--set", "cluster.ray.num_gpus=0")


def write_protocol(folder: Path, sweep: dict[str, object] | None = None, **changes: object) -> Path:
    """Write a protocol whose trials take seconds."""
    path = folder / "protocol.yaml"
    sweep = sweep or {"title": "Two small tasks", "variants": ["finetune", "lamol"]}
    path.write_text(yaml.safe_dump(SMALL | changes | {"sweep": sweep}), encoding="utf-8")
    return path


def invoke(*arguments: object) -> Result:
    """Run the command in this process, for calls that start no trial."""
    return CliRunner().invoke(app, ["sweep", *map(str, arguments)])


def files(folder: Path) -> dict[str, int]:
    """Return the modification time of every file below a folder."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# --- the papers' protocols ---


def test_every_table_and_figure_of_the_papers_has_a_protocol() -> None:
    of_l4 = {"table1", "table2", "table3-figure5-6", "table5", "table6", "table8", "figure4"}
    of_l2kd = {*(f"table{n}" for n in range(2, 7)), *(f"figure{n}" for n in range(3, 6))}
    assert set(PROTOCOLS) == {f"l4-{name}.yaml" for name in of_l4} | {f"l2kd-{name}.yaml" for name in of_l2kd}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_loads_at_full_size_and_small(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    full = invoke(EXPERIMENTS / name, "--dry-run", "--out", out, *ROOM)
    assert full.exit_code == 0, full.exception
    overlays = (*SMALL_MODEL, *(SMALL_TABLE5 if name == "l4-table5.yaml" else ()))
    small = invoke(EXPERIMENTS / name, "--dry-run", "--out", out, "--scale", "0.01", "--seeds", "1", *overlays, *ROOM)
    assert small.exit_code == 0, small.exception
    assert "scaled to 0.01 of its examples and epochs" in small.stdout
    assert 3 * small.stdout.count("_s0") == full.stdout.count("_s0") + full.stdout.count("_s1") + full.stdout.count(
        "_s2"
    )
    assert not out.exists()


@pytest.mark.parametrize(("name", "overlays"), [("l4-table2.yaml", GPT2_SHAPE), ("l4-table5.yaml", GPT2_TABLE5)])
def test_the_full_size_without_pretrained_weights(name: str, overlays: tuple[Path, ...], tmp_path: Path) -> None:
    options = [argument for overlay in overlays for argument in ("--with", overlay)]
    result = invoke(EXPERIMENTS / name, *options, "--dry-run", "--out", tmp_path / "out", *ROOM)
    assert result.exit_code == 0, result.exception
    assert "scaled" not in result.stdout
    full = expand_protocol(EXPERIMENTS / name, SweepRequest())
    scratch_sweep = expand_protocol(EXPERIMENTS / name, SweepRequest(overlays=overlays))
    for before, trial in zip(full.trials, scratch_sweep.trials, strict=True):
        assert trial.name == before.name
        assert trial.experiment.training == before.experiment.training, "the size of the protocol stays the same"
        assert trial.experiment.stream == before.experiment.stream
    scratch = scratch_sweep.trials[0].experiment.model.from_scratch
    assert scratch is not None
    like_gpt2 = GPT2Config(
        n_layer=scratch.layers,
        n_embd=scratch.width,
        n_head=scratch.heads,
        n_positions=scratch.positions,
        vocab_size=scratch.vocabulary,
    )
    assert like_gpt2.to_dict() == GPT2Config().to_dict()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_have_the_published_rows_and_orders(name: str) -> None:
    sweep = _read(EXPERIMENTS / name)["sweep"]
    if "table" not in sweep:
        assert name.startswith("l2kd-figure")
        return
    published = _read(REPOSITORY / "ray_l4" / "report" / "tables" / "published" / f"{sweep['table']}.yaml")
    rows = {row["variant"] for block in published["blocks"] for row in block["rows"]}
    assert rows - {"teacher"} <= set(sweep["variants"])
    orders = [block["order"] for block in published["blocks"] if "order" in block]
    own = [list(_read(EXPERIMENTS / name)["stream"])]
    assert all(order in sweep.get("orders", own) for order in orders)


def _read(path: Path) -> dict:
    tree, _ = parse(path.read_text(encoding="utf-8"), path.name)
    assert isinstance(tree, dict)
    return tree


# --- mistakes: one message, and nothing is started ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "training.epoch=1,2"], "--grid: training.epoch: unknown key. Did you mean 'epochs'?"),
        (["--grid", "training.epochs"], "--grid training.epochs: expected KEY=V1,V2"),
        (["--grid", "training.epochs="], "expected KEY=V1,V2"),
        (["--orders", "mini.woz:mini.res"], "task 'mini.res' is not in the stream. Did you mean 'mini.rest'?"),
        (["--orders", "mini.woz"], "mini.rest is missing"),
        (["--orders", "mini.woz:mini.rest,"], "expected values separated by commas"),
        (["--seeds", "0"], "expected at least one"),
        (["--seeds", "few"], "expected a number of seeds (3), or a list of them (0,7,12)"),
        (["--methods", "lamoll"], "unknown method or variant 'lamoll'. Did you mean 'lamol'?"),
        (["--against", "lamoll"], "--against: the protocol has no row 'lamoll'. Did you mean 'lamol'?"),
        (["--scale", "0"], "expected a number above 0 and at most 1"),
        (["--orders", "all", "--seeds", "200"], "800 trials"),
        (["--set", "training.epoch=1"], "--set: training.epoch: unknown key"),
        (["--set", "cluster.student.cpus=1"], "student: unknown key"),
        (["--with", "none.yaml"], "none.yaml: no such file"),
        (["--set", "cluster.students.cpus=5", *ROOM], "no room for 1 student with 5 CPU"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], message: str) -> None:
    out = tmp_path / "out"
    result = invoke(write_protocol(tmp_path), "--out", out, *arguments)
    assert isinstance(result.exception, RayL4Error)
    assert message in str(result.exception)
    assert not out.exists()


def test_missing_data_is_reported_once_before_anything_starts(tmp_path: Path, sweep_here: InThisProcess) -> None:
    path = write_protocol(tmp_path, stream=["woz.en", "e2enlg"], data={"raw": "nowhere"})
    result = sweep_here("sweep", path, "--out", tmp_path / "out", "--cluster", IN_PROCESS)
    refused(result, 3, "nowhere", "woz")
    assert not (tmp_path / "out").exists()


def test_values_of_options(tmp_path: Path) -> None:
    arguments = ("--dry-run", "--out", tmp_path / "out", "--cluster", IN_PROCESS, "--seeds", "7,")
    orders = ("--orders", "mini.rest:mini.woz,mini.woz:mini.rest")
    grid = ("--grid", "distillation.weight=0,1e-1", "--grid", "model.precision=float32")
    result = invoke(write_protocol(tmp_path), *arguments, *orders, *grid, "--methods", "l4")
    assert result.exit_code == 0, result.exception
    lines = [line for line in result.stdout.splitlines() if line.startswith("new")]
    assert len(lines) == 4
    assert "l4-distillation.weight=0.1-model.precision=float32_mini.rest-mini.woz_s7" in lines[1]
    assert "reserves [{'CPU': 1.0}]" in lines[0]


def test_run_does_not_take_a_protocol(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", str(write_protocol(tmp_path))])
    assert isinstance(result.exception, ConfigError)
    assert "ray-l4 sweep" in str(result.exception)


# --- several calls of one sweep ---


@pytest.fixture
def sweep_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InThisProcess:
    """Commands in this process, where a loop over the trials takes the place of Ray Tune."""
    from ray_l4.sweep import execute
    from ray_l4.sweep.run_trial import run_trial

    def run_one_by_one(
        pending: Mapping[str, Trial], directory: SweepDirectory, cluster: ClusterConfig, command: str, view: SweepView
    ) -> dict[str, str]:
        failures = {}
        for name, trial in pending.items():
            view.trial_started(name)
            try:
                run_trial(trial, directory, cluster, command)
            except RayL4Error as error:
                failures[name] = str(error)
            view.trial_ended(name, failed=name in failures)
        return failures

    monkeypatch.setattr(execute, "ray", SimpleNamespace(shutdown=lambda: None))
    monkeypatch.setattr(execute, "connect", lambda peers, cluster: None)
    monkeypatch.setattr(execute, "node_resources", lambda: [{"CPU": 1.0}])
    monkeypatch.setattr(execute, "run_on_tune", run_one_by_one)
    return InThisProcess(monkeypatch, capsys)


def test_a_second_call_repeats_nothing_and_a_wider_one_runs_only_new_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep_here: InThisProcess
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("sweep", write_protocol(tmp_path), "--scale", "0.9", "--cluster", IN_PROCESS)
    first = sweep_here(*arguments)
    assert first.returncode == 0, first.stderr
    out = tmp_path / "runs" / "small-x0.9"
    assert "# Two small tasks, scaled to 0.9 of its examples and epochs" in first.stdout
    assert first.stdout.count(": done after") == 2
    table = (out / "table.md").read_text()
    assert table in first.stdout
    assert {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")} >= {"finetune", "lamol"}

    runs = out / "finetune_mini.woz-mini.rest_s0", out / "lamol_mini.woz-mini.rest_s0"
    assert [json.loads((run / "manifest.json").read_text())["scale"] for run in runs] == [0.9, 0.9]
    report = (runs[1] / "report.md").read_text()
    (runs[1] / "report.md").unlink()  # as if the run had been killed after writing its summary
    before = [files(run) for run in runs]
    second = sweep_here(*arguments)
    assert second.returncode == 0, second.stderr
    assert "2 trials: 2 already done, 0 begun, 0 new" in second.stdout
    assert table in second.stdout
    assert (runs[1] / "report.md").read_text() == report
    before[1] |= {name: when for name, when in files(runs[1]).items() if name.endswith("report.md")}
    assert [files(run) for run in runs] == before

    wider = sweep_here(*arguments, "--methods", "lamol,l4")
    assert "2 trials: 1 already done, 0 begun, 1 new" in wider.stdout
    assert [files(run) for run in runs] == before
    assert [line for line in (out / "table.md").read_text().splitlines() if line.startswith("| l4")]

    compared = sweep_here(*arguments, "--against", "finetune")
    assert "2 already done, 0 begun, 0 new" in compared.stdout
    assert "Paired differences to finetune:" in compared.stdout and "| l4      |     1 |" in compared.stdout

    other = sweep_here(*arguments, "--set", "training.lm_weight=0.5")
    refused(other, 5, "training.lm_weight is 0.25 there and 0.5 here", "--out")
    assert [files(run) for run in runs] == before


@pytest.mark.end_to_end
@pytest.mark.ray
def test_a_failing_trial_is_listed_and_retried(tmp_path: Path, sweep_here: InThisProcess) -> None:
    """The first call runs on Ray, in its own process."""
    sweep = {"variants": {"good": {"method": "finetune"}, "bad": {"model.from_scratch.positions": 8}}}
    arguments = ("sweep", write_protocol(tmp_path, sweep), "--out", tmp_path / "out", "--cluster", IN_PROCESS)
    first = ray_l4(*arguments, "--set", "cluster.ray.num_cpus=2")
    for result in (first, sweep_here(*arguments)):
        refused(result, 1, "1 of 2 trials failed", "Run the same command again to retry them")
        assert "failed: bad_mini.woz-mini.rest_s0: " in result.stdout
        assert "do not fit" in result.stdout
        assert "| good" in result.stdout, "the table of the finished trials"
    assert first.stdout.count("good_mini.woz-mini.rest_s0: done after") == 1
    assert "2 trials: 1 already done, 0 begun, 1 new" in result.stdout
    assert not (tmp_path / "out" / ".tune").exists()


def wait_until_lock_is_free(run: RunDirectory) -> None:
    """Wait for a process that is no longer in /proc: it releases its locks a moment later."""
    deadline = time.monotonic() + END_LIMIT
    while True:
        try:
            with run.lock():
                return
        except RunDirectoryError:
            assert time.monotonic() < deadline, "a killed trial still holds its lock"
            time.sleep(0.1)


def check_stopped(out: Path) -> dict[str, int]:
    """Check that the second trial was stopped midway; return the files of the first one."""
    begun = RunDirectory.open(out / "lamol_mini.woz-mini.rest_s0")
    wait_until_lock_is_free(begun)
    assert not (begun.path / "summary.json").exists(), "the trial was not stopped midway"
    return files(out / "finetune_mini.woz-mini.rest_s0")


@pytest.mark.end_to_end
@pytest.mark.ray
def test_a_sweep_that_was_stopped_twice_is_continued(
    tmp_path: Path, start: Callable[..., BackgroundCommand], sweep_here: InThisProcess
) -> None:
    """The first trial is done and the second one is in its second task when the sweep is killed, then interrupted."""
    # The second task is long, because a trial continues until Ray notices that the process of its sweep is gone.
    stream = [{"name": "mini.woz", "train": 24, "test": 6}, {"name": "mini.rest", "train": 5000, "test": 6}]
    variants = {"finetune": {"method": "finetune", "stream.1.train": 24}, "lamol": {"method": "lamol"}}
    path, out = write_protocol(tmp_path, {"variants": variants}, stream=stream), tmp_path / "out"
    begun = out / "lamol_mini.woz-mini.rest_s0"
    state, log = begun / "state.json", out / "logs" / f"{begun.name}.log"

    arguments = ("sweep", path, "--out", out, "--cluster", IN_PROCESS)

    killed = start(*arguments, "--set", "cluster.ray.num_cpus=1")
    killed.wait_until(lambda: state.is_file() and json.loads(state.read_text())["stages_done"] == 1)
    killed.send(signal.SIGKILL)
    code, output, errors = killed.end()
    assert code == -signal.SIGKILL
    assert "Traceback" not in output + errors
    assert killed.wait_until_gone(RAY_AGENTS) == [], "the agents are waited for after the other tests"
    done = check_stopped(out)

    interrupted = start(*arguments, "--set", "cluster.ray.num_cpus=1")
    interrupted.wait_until(lambda: "learning mini.rest" in log.read_text().partition("resumed after mini.woz")[2])
    interrupted.send(signal.SIGINT, to_group=True)
    code, output, errors = interrupted.end()
    assert code == 130, errors
    assert "2 trials: 1 already done, 1 begun, 0 new" in output
    assert "Traceback" not in output + errors
    assert interrupted.wait_until_gone() == []
    assert check_stopped(out) == done
    assert not (out / ".tune").exists()

    finished = sweep_here(*arguments)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "2 trials: 1 already done, 1 begun, 0 new" in finished.stdout
    assert files(out / "finetune_mini.woz-mini.rest_s0") == done
    assert log.read_text().count("resumed after mini.woz") == 2
    assert RunDirectory.open(begun).summary()["variant"] == "lamol"
