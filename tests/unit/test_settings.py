"""Settings: the file, overridden by the environment, overridden by the caller; each one documented."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lakehouse import settings
from lakehouse.core.errors import Invalid
from lakehouse.settings import ALL_ROLES, PROXIED_ROLES, ApiKey, Right, Role, Settings

DIGEST = "0" * 64
URLS = {f"{role}_url": f"http://{role}:1" for role in PROXIED_ROLES}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in [name for name in os.environ if name.startswith(settings.ENV_PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_every_setting_is_documented_and_in_the_table() -> None:
    table = settings.markdown_table()
    for name, field in Settings.model_fields.items():
        assert field.description is not None, name
        assert len(field.description) > 30, name
        assert field.description.endswith("."), name
        assert f"| `{name}` | `LAKEHOUSE_{name.upper()}` | " in table
    assert len(table.splitlines()) == len(Settings.model_fields) + 2
    for name, field in ApiKey.model_fields.items():
        assert field.description, name


def test_the_table_would_show_an_undocumented_setting() -> None:
    class Careless(Settings):
        forgotten: int = 1

    assert Careless.model_fields["forgotten"].description is None


def test_defaults_run_everything_on_loopback() -> None:
    chosen = settings.load()
    assert (chosen.host, chosen.port, chosen.roles) == ("127.0.0.1", 3110, ALL_ROLES)
    assert chosen.vectors_body_bytes_max == 64 << 20


def test_the_caller_overrides_the_environment_overrides_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lakehouse.toml").write_text('port = 1\nhost = "127.0.0.2"\ndata = "from-file"\n')
    monkeypatch.setenv("LAKEHOUSE_PORT", "2")
    monkeypatch.setenv("LAKEHOUSE_HOST", "127.0.0.3")
    chosen = settings.load(port=3)
    assert (chosen.port, chosen.host, chosen.data) == (3, "127.0.0.3", "from-file")
    assert settings.load(port=None).port == 2


def test_a_named_file_is_read_and_must_exist(tmp_path: Path) -> None:
    named = tmp_path / "named.toml"
    named.write_text("port = 7\n")
    assert settings.load(named).port == 7
    with pytest.raises(Invalid, match="does not exist"):
        settings.load(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot = 1\n", "there is no setting `prot`; is it `port`?"),
        ("colour = 1\n", "there is no setting `colour`"),
        ("port = 'many'\n", "LAKEHOUSE_PORT"),
        ("port = 'many'\n", "port=`many`"),
        ("port = 70000\n", "port=`70000`"),
        ("roles = ['gatekeeper']\n", "roles.0=`gatekeeper`"),
        ("port = \n", "lakehouse.toml"),
        ("[[keys]]\nname = 'k'\nright = 'read'\nsha256 = 'short'\n", "keys.0.sha256"),
        (f"[[keys]]\nname = 'k'\nright = 'root'\nsha256 = '{DIGEST}'\n", "keys.0.right"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "lakehouse.toml").write_text(text)
    with pytest.raises(Invalid) as refused:
        settings.load()
    assert named in refused.value.message


def test_a_wrong_key_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "lakehouse.toml").write_text("[[keys]]\nname='k'\nright='read'\nsha256='lh_the-key-itself'\n")
    with pytest.raises(Invalid) as refused:
        settings.load()
    assert "lh_the-key-itself" not in refused.value.message


@pytest.mark.parametrize(("name", "value"), [("PEER_KEY", "too-short"), ("KEYS", "lh_the-key-itself")])
def test_no_key_of_the_environment_is_shown(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"LAKEHOUSE_{name}", value)
    with pytest.raises(Invalid, match=name.lower()) as refused:
        settings.load()
    assert value not in refused.value.message


def test_keys_and_roles_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [{"name": "a", "right": "read", "sha256": DIGEST}]
    monkeypatch.setenv("LAKEHOUSE_KEYS", json.dumps(keys))
    monkeypatch.setenv("LAKEHOUSE_ROLES", "vectors, storage")
    chosen = settings.load()
    assert chosen.keys == (ApiKey(name="a", right=Right.READ, sha256=DIGEST),)
    assert chosen.roles == (Role.VECTORS, Role.STORAGE)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", ""])
def test_an_open_address_needs_keys_or_insecure(host: str) -> None:
    with pytest.raises(Invalid, match="--insecure"):
        settings.load(host=host)
    assert settings.load(host=host, insecure=True).host == host
    assert settings.load(host=host, keys=[{"name": "a", "right": "read", "sha256": DIGEST}]).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_a_loopback_address_needs_no_keys(host: str) -> None:
    assert settings.load(host=host).host == host


@pytest.mark.parametrize("role", PROXIED_ROLES)
@pytest.mark.parametrize(
    "url", [None, "", "127.0.0.1:3215", "ftp://host", "http://", "//host", "http://h:port"]
)
def test_a_gateway_needs_a_whole_address_of_every_role(role: Role, url: str | None) -> None:
    given: dict[str, Any] = URLS | {f"{role}_url": url}
    with pytest.raises(Invalid, match=f"LAKEHOUSE_{role.upper()}_URL"):
        settings.load(roles="gateway", **given)


def test_a_gateway_needs_no_address_of_what_it_runs_itself() -> None:
    chosen = settings.load(
        roles="gateway,storage,catalog,ingest,query", vectors_url="https://v.example:3215/base"
    )
    assert chosen.role_url(Role.VECTORS) == "https://v.example:3215/base"
    assert chosen.role_url(Role.STORAGE) is None


def test_settings_are_frozen() -> None:
    chosen = settings.load()
    with pytest.raises(ValidationError):
        chosen.port = 1


def test_each_right_includes_the_one_before_it() -> None:
    allowed = {held: [needed for needed in Right if held.allows(needed)] for held in Right}
    assert allowed == {
        Right.READ: [Right.READ],
        Right.WRITE: [Right.READ, Right.WRITE],
        Right.ADMIN: [Right.READ, Right.WRITE, Right.ADMIN],
    }


POD: dict[str, Any] = {
    "roles": "vectors",
    "index": "products",
    "shard": 1,
    "shard_url": "http://products-shard-{shard}:3110",
}


def test_a_pod_finds_its_peers_by_its_shard() -> None:
    pod = settings.load(**POD, peer_key="0123456789abcdef", declared="VectorIndex/shop/products")
    assert pod.peers_url == "http://products-shard-1:3110"
    assert settings.load(**POD, peers="http://pool:1").peers_url == "http://pool:1"
    assert settings.load().peers_url is None
    assert "0123456789abcdef" not in repr(pod)
    several = settings.load(roles="vectors", peers="http://127.0.0.1:1,127.0.0.1:2")
    assert several.peers_url == "http://127.0.0.1:1,127.0.0.1:2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_url": None}, "shard and shard_url are given together"),
        ({"shard": None}, "shard and shard_url are given together"),
        ({"shard_url": "http://products:3110"}, "shard_url needs `{shard}`"),
        ({"shard_url": "https://products-{shard}:3110"}, "inside the cluster"),
        ({"shard_url": "products-{shard}:3110"}, "scheme and a host"),
        ({"index": None}, "shard says something of one index"),
        ({"index": "../x"}, "index"),
        ({"shard": -1}, "shard"),
        ({"read_only": "it follows a dataset"}, "read_only needs declared"),
        ({"peers": "http://a:1,:2"}, "scheme and a host"),
        ({"peer_key": "short"}, "peer_key"),
        (
            {"peer_key": "0123456789abcdef", "peer_key_file": "/key"},
            "LAKEHOUSE_PEER_KEY or LAKEHOUSE_PEER_KEY_FILE",
        ),
        ({"drain_s": -1}, "drain_s"),
    ],
)
def test_settings_of_a_pod_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=message.replace("{", r"\{").replace("}", r"\}")):
        settings.load(**{**POD, **changes})
