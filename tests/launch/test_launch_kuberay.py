"""The Kubernetes manifest: its schema, its network access, and whether its run resolves and has room."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ray_l4.errors import ClusterError
from tests.launch.launch_fixtures import REPOSITORY, Commands, Run, ray_start, resolved, words_of

FOLDER = REPOSITORY / "launch" / "kuberay"
SCHEMA = json.loads(Path(__file__).with_name("rayjob.schema.json").read_text(encoding="utf-8"))
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
CLAIM, JOB, POLICY = yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text(encoding="utf-8"))
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD, WORKERS = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]


def container_of(group: dict[str, Any]) -> dict[str, Any]:
    (container,) = group["template"]["spec"]["containers"]
    return container


def nodes() -> Iterator[dict[str, float]]:
    """Yield the resources of each pod as Ray sees them: the container's limits, unless rayStartParams differ."""
    for group, count in [(HEAD, 1), *((group, group["minReplicas"]) for group in WORKERS)]:
        limits, params = container_of(group)["resources"]["limits"], group["rayStartParams"]
        node = {"CPU": float(params.get("num-cpus", limits["cpu"])), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        yield from [node] * count


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The entrypoint, run in this repository in place of the image's folder."""
    shell, script, *arguments = words_of(JOB["spec"]["entrypoint"])
    assert shell == "bash"
    commands = Commands(tmp_path)
    result = commands.run(shell, script.replace(workdir(), str(REPOSITORY)), *arguments)
    assert result.returncode == 0, result.stderr
    return resolved(commands.only_call("ray-l4"))


def workdir() -> str:
    return re.findall(r"^WORKDIR (\S+)$", DOCKERFILE, re.MULTILINE)[0]


def test_the_manifest_satisfies_the_schema_of_a_rayjob() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(JOB, SCHEMA)
    assert [(part["apiVersion"], part["kind"]) for part in (CLAIM, POLICY)] == [
        ("v1", "PersistentVolumeClaim"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
    ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda spec: spec["rayClusterSpec"].pop("authOptions"), "'authOptions' is a required property"),
        (lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="disabled"), "'token' was expected"),
        (lambda spec: spec["rayClusterSpec"]["headGroupSpec"].update(serviceType="LoadBalancer"), "'ClusterIP' was"),
        (lambda spec: spec["rayClusterSpec"].update(rayVersion=2.6), "is not of type 'string'"),
        (lambda spec: spec["rayClusterSpec"]["headGroupSpec"].update(rayStartParams={"num-cpus": 0}), "'string'"),
        (lambda spec: spec.update(submissionMode="SidecarMode"), "'K8sJobMode' was expected"),
        (lambda spec: spec.update(entryPoint="x"), "'entryPoint' was unexpected"),
    ],
)
def test_the_schema_refuses_invalid_and_unsafe_manifests(spoil: Callable[[Any], Any], message: str) -> None:
    job = copy.deepcopy(JOB)
    spoil(job["spec"])
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(job, SCHEMA)


def test_ray_knows_all_start_parameters() -> None:
    for group, first in [(HEAD, ["--head"]), *((group, ["--address=head:6379"]) for group in WORKERS)]:
        ray_start([*first, *(f"--{name}={value}" for name, value in group["rayStartParams"].items())])


def test_only_the_cluster_itself_the_submitter_and_kuberay_reach_the_pods() -> None:
    selected = POLICY["spec"]["podSelector"]["matchLabels"]
    for group in (HEAD, *WORKERS):
        assert selected.items() <= group["template"]["metadata"]["labels"].items()
    inside, outside = POLICY["spec"]["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": selected}}]}
    dashboard = {port["name"]: port["containerPort"] for port in container_of(HEAD)["ports"]}["dashboard"]
    assert outside["ports"] == [{"protocol": "TCP", "port": dashboard}]
    submitter, operator = outside["from"]
    assert submitter["podSelector"]["matchLabels"] == {"ray.io/originated-from-cr-name": JOB["metadata"]["name"]}
    assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}


def test_head_workers_and_image_have_one_version() -> None:
    images = {container_of(group)["image"] for group in (HEAD, *WORKERS)}
    assert len(images) == 1
    assert images.pop() in DOCKERFILE, "the build command names it"
    assert re.findall(r"^FROM rayproject/ray:([\d.]+)-py311$", DOCKERFILE, re.MULTILINE) == [CLUSTER["rayVersion"]]


def test_the_image_contains_the_files_of_the_entrypoint() -> None:
    copied = re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert all((REPOSITORY / source).exists() for source in sources)
    files = [word.removeprefix(f"{workdir()}/") for word in words_of(JOB["spec"]["entrypoint"]) if word.endswith("ml")]
    assert len(files) == 2
    for file in files:
        assert (REPOSITORY / file).is_file()
        assert Path(file).parts[0] in sources


def test_the_run_resolves_and_has_room(run: Run) -> None:
    assert run.cluster.ray.address == "auto"
    there = list(nodes())
    places = run.fits(there)
    assert 0 not in places, "no students or evaluators on the head"
    with pytest.raises(ClusterError):
        run.fits(there[:-1])


def test_the_run_directory_outlives_the_pod(run: Run) -> None:
    (mount,) = container_of(HEAD)["volumeMounts"]
    assert run.folder.startswith(f"{mount['mountPath']}/")
    volume = {volume["name"]: volume for volume in HEAD["template"]["spec"]["volumes"]}[mount["name"]]
    assert volume["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]


def test_the_number_of_workers_is_fixed() -> None:
    for group in WORKERS:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
