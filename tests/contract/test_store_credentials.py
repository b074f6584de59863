"""Keys in files, as a mounted Secret has them: a store that is open takes the new ones, and restarts nothing."""

import os
from pathlib import Path
from typing import Any

import pytest

from bucket_keys import Mounted, for_reading
from lakehouse.core.errors import CredentialsRefused, Outcome
from lakehouse.runtime import SystemRuntime
from lakehouse.settings import load
from lakehouse.store import credentials
from lakehouse.store.credentials import DirectoryCredentials
from lakehouse.store.open import open_store
from lakehouse.store.s3 import S3Settings, S3Store
from minio_server import MinioServer


@pytest.fixture
def runtime() -> Any:
    runtime = SystemRuntime(2)
    yield runtime
    runtime.close()


def frozen(found: DirectoryCredentials) -> tuple[str, str, str | None]:
    now = found.get_frozen_credentials()
    return now.access_key, now.secret_key, now.token


def test_the_keys_are_those_of_the_moment(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path / "s3", "id-1", "secret-1")
    found = DirectoryCredentials(mounted.path)
    assert frozen(found) == ("id-1", "secret-1", None)
    mounted.replace("id-2", "secret-2", "token-2")
    assert frozen(found) == ("id-2", "secret-2", "token-2")
    assert (found.access_key, found.secret_key, found.token) == frozen(found)
    mounted.replace("id-3", "secret-3")
    assert frozen(found) == ("id-3", "secret-3", None)


def test_files_that_did_not_change_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = DirectoryCredentials(Mounted(tmp_path / "s3", "id", "secret").path)
    before = found.get_frozen_credentials()
    monkeypatch.setattr(Path, "read_text", None)
    assert found.get_frozen_credentials() is before


def test_keys_of_two_secrets_are_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The volume changes between the reading of one file and the next."""
    mounted = Mounted(tmp_path / "s3", "id-1", "secret-1")
    read, changes = Path.read_text, [lambda: mounted.replace("id-2", "secret-2")]

    def reading(path: Path) -> str:
        text = read(path)
        if changes:
            changes.pop()()
        return text

    monkeypatch.setattr(Path, "read_text", reading)
    assert frozen(DirectoryCredentials(mounted.path)) == ("id-2", "secret-2", None)


def test_a_directory_without_keys_is_named_and_may_get_them(tmp_path: Path) -> None:
    found = DirectoryCredentials(tmp_path)
    for missing in credentials.FILES[:2]:
        with pytest.raises(CredentialsRefused, match=f"path=`{tmp_path}/{missing}`") as caught:
            found.get_frozen_credentials()
        assert caught.value.outcome is Outcome.NOT_COMMITTED
        (tmp_path / missing).write_text(missing.lower())
    assert frozen(found) == ("aws_access_key_id", "aws_secret_access_key", None)


def test_a_key_that_is_no_text_is_refused_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / credentials.KEY_ID).write_bytes(b"hush\xff")
    with pytest.raises(CredentialsRefused, match="UnicodeDecodeError") as caught:
        DirectoryCredentials(tmp_path).get_frozen_credentials()
    assert "hush" not in str(caught.value)


def test_a_processs_settings_say_how_its_bucket_is_reached() -> None:
    told = load(s3_endpoint="http://minio:9000", s3_region="eu", s3_credentials_dir=Path("/keys"))
    assert S3Settings.of(told) == S3Settings("http://minio:9000", "eu", credentials_dir=Path("/keys"))


@pytest.mark.parametrize(
    ("said", "variables", "region"),
    [
        ("eu-west-1", {"AWS_REGION": "eu-west-2"}, "eu-west-1"),
        (None, {"AWS_REGION": "eu-west-2", "AWS_DEFAULT_REGION": "eu-west-3"}, "eu-west-2"),
        (None, {"AWS_DEFAULT_REGION": "eu-west-3"}, "eu-west-3"),
        (None, {}, "us-east-1"),
    ],
)
async def test_the_region_is_what_was_said_or_what_aws_says_by_its_own_names(
    runtime: SystemRuntime,
    monkeypatch: pytest.MonkeyPatch,
    said: str | None,
    variables: dict[str, str],
    region: str,
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    store = S3Store("lake", "", runtime, S3Settings(region=said))
    assert store._client.meta.region_name == region
    await store.close()


def reached(minio: MinioServer, directory: Path) -> S3Settings:
    return S3Settings(endpoint=minio.endpoint, credentials_dir=directory)


@pytest.mark.minio
async def test_a_store_that_is_open_goes_on_with_the_new_key(
    own_minio: MinioServer, runtime: SystemRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files go before the environment, which is of the process's first minute."""
    for name, value in own_minio.environment().items():
        monkeypatch.setenv(name, value)
    mounted = Mounted(tmp_path / "s3", own_minio.access_key, own_minio.secret_key)
    store = await open_store(f"s3://{own_minio.bucket}/p", runtime, s3=reached(own_minio, mounted.path))
    await store.put("k", b"1")
    own_minio.access_key, own_minio.secret_key = "another-user", "another-secret-of-forty-letters"
    own_minio.restart()
    with pytest.raises(CredentialsRefused):
        await store.get("k")
    mounted.replace(own_minio.access_key, own_minio.secret_key)
    assert await store.get("k") == b"1"
    await store.create("l", b"2")
    await store.close()


@pytest.mark.minio
async def test_keys_with_a_token_follow_keys_without_one(
    minio: MinioServer, runtime: SystemRuntime, tmp_path: Path
) -> None:
    mounted = Mounted(tmp_path / "s3", minio.access_key, minio.secret_key)
    store = S3Store(minio.bucket, "with/token", runtime, reached(minio, mounted.path))
    await store.put("k", b"1")
    mounted.replace(*for_reading(minio))
    assert await store.get("k") == b"1"
    with pytest.raises(CredentialsRefused):
        await store.put("k", b"2")
    mounted.replace(minio.access_key, minio.secret_key)
    await store.put("k", b"2")
    await store.close()


@pytest.mark.minio
async def test_a_store_without_files_says_which(
    minio: MinioServer, runtime: SystemRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the environment says is not taken for it."""
    for name, value in minio.environment().items():
        monkeypatch.setenv(name, value)
    nowhere = tmp_path / "nowhere"
    store = S3Store(minio.bucket, "", runtime, reached(minio, nowhere))
    with pytest.raises(CredentialsRefused, match=os.fspath(nowhere / credentials.KEY_ID)):
        await store.get("k")
    await store.close()
