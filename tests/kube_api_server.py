"""A real kube-apiserver over a real etcd, on free loopback ports: no kubelet, no scheduler, no controllers.

Objects are stored, defaulted, validated, watched and authorised as in any cluster; nothing is done about them.  The
definitions of crds/ are in place.  The API server can be killed and started again on the same port and data.  The
programs are those that the `host` engine of tests/e2e builds; where they are missing the tests say so and are skipped.
`LAKEHOUSE_TEST_CLUSTER_BIN` names another folder.
"""

import os
import secrets
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import httpx
import pytest

from ports import free_port

if TYPE_CHECKING:
    import kopf

REPOSITORY = Path(__file__).parents[1]
BIN = Path(
    os.environ.get("LAKEHOUSE_TEST_CLUSTER_BIN", Path.home() / ".cache" / "lakehouse" / "cluster-v1.34.4")
)
PROGRAMS = ("etcd", "kube-apiserver", "kubectl")
START_SECONDS_MAX = 60.0
ADMIN = "admin"
USERS = {ADMIN: "system:masters", "operator": "operators", "stranger": "strangers"}
"""Names and groups; all but the first may do what tests allow them."""


def missing() -> str:
    """Why there can be no API server here; empty when there can."""
    absent = [name for name in PROGRAMS if not (BIN / name).is_file()]
    if absent:
        return f"the programs of a cluster are not built: {', '.join(absent)}"
    return "" if shutil.which("openssl") else "there is no openssl to make a key with"


class KubeApiServer:
    """etcd and kube-apiserver; a `with` statement starts and stops them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tokens = {name: secrets.token_hex(16) for name in USERS}
        self._etcd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._ports = [free_port() for _ in range(3)]

    def __enter__(self) -> "KubeApiServer":
        try:
            self._prepare()
            self._start_etcd()
            self.start()
            self.kubectl("apply", "--server-side", "-f", str(REPOSITORY / "crds"))
            self.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------- life

    def start(self) -> None:
        """Start the API server, again on the same port, and wait until it is ready."""
        etcd, port = self._ports[0], self._ports[2]
        certificates = self.folder / "certificates"
        self._server = self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            f"--secure-port={port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--cert-dir={certificates}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.folder / 'sa.key'}",
            f"--service-account-signing-key-file={self.folder / 'sa.key'}",
            # Nobody here makes the ServiceAccounts that pods would need.
            "--disable-admission-plugins=ServiceAccount",
            "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
            "--endpoint-reconciler-type=none",
            "--profiling=false",
            "--v=0",
        )
        self._wait_for("kube-apiserver", self._server, self.is_ready)

    def kill(self) -> None:
        """End the API server at once; etcd keeps what it had."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def close(self) -> None:
        """End both."""
        self.kill()
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd.wait()
            self._etcd = None

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [f"{self._tokens[name]},{name},{name},{group}" for name, group in USERS.items()]
        (self.folder / "tokens.csv").write_text("\n".join(rows) + "\n")
        key = str(self.folder / "sa.key")
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        for name in USERS:
            self.kubeconfig(name).write_text(self._kubeconfig(name))

    def _start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in self._ports[:2])
        self._etcd = self._run(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=error",
        )
        self._wait_for("etcd", self._etcd, lambda: _answers(f"{client}/health"))

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program}.log").open("ab") as log:
            return subprocess.Popen([BIN / program, *arguments], stdout=log, stderr=subprocess.STDOUT)

    def _wait_for(self, program: str, process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                log = (self.folder / f"{program}.log").read_text()
                raise RuntimeError(f"{program} does not start:\n{log[-3000:]}")
            time.sleep(0.1)

    # ---------------------------------------------------------------- reaching it

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._ports[2]}"

    @property
    def certificate(self) -> Path:
        """What its clients trust."""
        return self.folder / "certificates" / "apiserver.crt"

    def is_ready(self) -> bool:
        if not self.certificate.is_file():
            return False
        context = ssl.create_default_context(cafile=str(self.certificate))
        return _answers(f"{self.url}/readyz", context, self._tokens[ADMIN])

    def login(self, user: str = ADMIN) -> "kopf.ConnectionInfo":
        """How the operator reaches it as one of the `USERS`."""
        import kopf

        return kopf.ConnectionInfo(
            server=self.url,
            ca_path=str(self.certificate),
            token=self._tokens[user],
            default_namespace="default",
        )

    def kubeconfig(self, user: str = ADMIN) -> Path:
        return self.folder / f"{user}.kubeconfig"

    def _kubeconfig(self, user: str) -> str:
        return f"""apiVersion: v1
kind: Config
clusters: [{{name: test, cluster: {{server: "{self.url}", certificate-authority: "{self.certificate}"}}}}]
users: [{{name: {user}, user: {{token: {self._tokens[user]}}}}}]
contexts: [{{name: test, context: {{cluster: test, user: {user}, namespace: default}}}}]
current-context: test
"""

    def kubectl(self, *arguments: str, user: str = ADMIN, document: str = "") -> str:
        """What `kubectl` prints.  Raises `CalledProcessError`."""
        command = [str(BIN / "kubectl"), f"--kubeconfig={self.kubeconfig(user)}", *arguments]
        done = subprocess.run(
            command, input=document, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout


def _answers(url: str, context: ssl.SSLContext | None = None, token: str = "") -> bool:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        return httpx.get(url, headers=headers, timeout=2, verify=context or True).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="session")
def kube_api() -> Iterator[KubeApiServer]:
    """One API server for the session (of each worker); tests take namespaces of their own."""
    why = missing()
    if why:
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="kube-api-") as folder, KubeApiServer(Path(folder)) as server:
        yield server
