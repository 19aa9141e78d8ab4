"""What is kept of command lines, addresses and messages that contain secrets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.loading import load_cluster
from ray_l4.config.redaction import redacted, redacted_command
from ray_l4.errors import ConfigError

SECRET = "5ecr3tOf16Letters"


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--set", f"cluster.storage_path=s3://me:{SECRET}@b/x"], "--set 'cluster.storage_path=s3://me:***@b/x'"),
        (["--set", f"a.password={SECRET}"], "--set 'a.password=***'"),
        (["--api-key", SECRET, "--seed", "1"], "--api-key '***' --seed 1"),
        ([f"--token={SECRET}"], "'--token=***'"),
        ([f"WANDB_API_KEY={SECRET}"], "'WANDB_API_KEY=***'"),
        ([f"s3://b/x?access_key=me&secret_key={SECRET}&scheme=http"], None),
        ([f"hf_{SECRET}abc"], "'hf_***'"),
        (["run", "a.yaml", "--set", "model.task_tokens=shared"], "run a.yaml --set model.task_tokens=shared"),
        (["--set", "evaluation.max_new_tokens=8", "it's"], "--set evaluation.max_new_tokens=8 'it'\"'\"'s'"),
    ],
)
def test_a_command_line_is_kept_without_secrets(words: list[str], kept: str | None) -> None:
    found = redacted_command(words)
    assert SECRET not in found and kept in (None, found)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"s3://key:{SECRET}@bucket/x: no", "s3://key:***@bucket/x: no"),
        ("abfs://container@account/x", "abfs://container@account/x"),
        (f"https://user:{SECRET}@host, twice: http://a:{SECRET}@b", "https://user:***@host, twice: http://a:***@b"),
        (f"401 for hf_{SECRET}", "401 for hf_***"),
        (f"no s3://b/x?secret_key={SECRET}&scheme=http.", "no s3://b/x?secret_key=***&scheme=http."),
        (f"failed: tool --token {SECRET} --seed 1", "failed: tool --token *** --seed 1"),
        (f"failed: tool --api-key={SECRET}", "failed: tool --api-key=***"),
        (f"git clone https://{SECRET}@host/x", "git clone https://***@host/x"),
        ("run --key-column a and a --monkey b", "run --key-column a and a --monkey b"),
        ("12 tokens: 3 per second; key: value", "12 tokens: 3 per second; key: value"),
    ],
)
def test_a_message_is_kept_without_secrets(text: str, kept: str) -> None:
    assert redacted(text) == kept


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "MY_PASSWORD"]
)
@given(before=st.text(), after=st.text())
def test_a_secret_of_the_environment_is_kept_nowhere(name: str, before: str, after: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, SECRET)
        assert SECRET not in redacted(before + SECRET + after)
        assert SECRET not in redacted_command([before + SECRET + after])


@pytest.mark.parametrize(
    "address", [f"s3://me:{SECRET}@bucket/runs", f"s3://bucket/runs?secret_key={SECRET}", f"abfs://c@a/x?sig={SECRET}"]
)
def test_a_profile_with_a_password_is_refused_without_showing_it(address: str) -> None:
    with pytest.raises(ConfigError, match=r"storage_path: .*\*\*\*.* contains a password or a key") as caught:
        load_cluster(None, [f"storage_path={address}"])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("address", ["s3://bucket/runs?region=eu-1", "/data/token=a/x", "abfs://container@account/x"])
def test_an_address_without_one_is_not(address: str) -> None:
    assert ClusterConfig(storage_path=address).storage_path == address
