"""Starting, refusing to start, and ending well."""

import subprocess
from pathlib import Path

import httpx

from lakehouse.server.auth import new_key
from live_server import LiveServer, command_line, environment, serving


def refused(tmp_path: Path, *args: str, **env: str) -> str:
    """Run a server that must not start; what it says."""
    ended = subprocess.run(
        command_line("serve", *args), cwd=tmp_path, env=environment(env), capture_output=True, timeout=60
    )
    assert ended.returncode not in (0, -9)
    said = ended.stderr.decode() + ended.stdout.decode()
    assert "Traceback" not in said
    return " ".join(said.split())


def test_an_open_address_starts_with_keys_or_with_insecure(tmp_path: Path) -> None:
    _, digest = new_key()
    keys = f'[{{"name": "k", "right": "read", "sha256": "{digest}"}}]'
    for args, env in ((["--insecure"], {}), ([], {"LAKEHOUSE_KEYS": keys})):
        with serving("memory:", tmp_path / "log", args=["--host", "0.0.0.0", *args], env=env) as server:
            assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200


def test_a_gateway_needs_a_whole_address_of_every_role(tmp_path: Path) -> None:
    env = {f"LAKEHOUSE_{role}_URL": "http://127.0.0.1:1" for role in ("STORAGE", "CATALOG")}
    said = refused(tmp_path, "--roles", "gateway", LAKEHOUSE_VECTORS_URL="127.0.0.1:3215", **env)
    assert "LAKEHOUSE_VECTORS_URL" in said


def test_an_unknown_setting_in_the_file_ends_start_up(tmp_path: Path) -> None:
    (tmp_path / "lakehouse.toml").write_text('dat = "typo"\n')
    assert "dat" in refused(tmp_path)


def test_roles_share_a_directory_and_answer_only_for_themselves(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    storage = LiveServer(data, tmp_path / "storage.log", args=["--roles", "storage"])
    vectors = LiveServer(data, tmp_path / "vectors.log", args=["--roles", "vectors,catalog"])
    with storage, vectors:
        storage.start()
        vectors.start()
        assert httpx.put(f"{storage.url}/storage/put/x", content=b"x", timeout=60).status_code == 200
        assert httpx.get(f"{storage.url}/v1/storage/get/x", timeout=60).content == b"x"
        assert httpx.get(f"{storage.url}/v1/vectors/index", timeout=60).status_code == 404
        assert httpx.get(f"{vectors.url}/v1/storage/get/x", timeout=60).status_code == 404
        assert (
            httpx.post(
                f"{vectors.url}/vectors/index", json={"name": "x", "dimension": 2}, timeout=60
            ).status_code
            == 201
        )
        assert httpx.get(f"{storage.url}/v1/storage/list?prefix=_vectors/x", timeout=60).json()["objects"]
        assert "data" in refused(tmp_path, "--data", data, "--roles", "vectors", "--port", "0")
