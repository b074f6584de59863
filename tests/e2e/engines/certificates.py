"""The cluster's own certificate authority, and who it vouches for: each component by its Kubernetes user name.

What this does not do: renew.  A cluster for tests is younger than its certificates.
"""

from dataclasses import dataclass
from pathlib import Path

from .machine import run

DAYS = 365


@dataclass(frozen=True)
class Authority:
    """A directory of certificates: ca.crt, and <name>.crt with <name>.key for each issued one."""

    directory: Path

    def create(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._openssl("ca", "/CN=lakehouse-test-ca", ["basicConstraints=critical,CA:TRUE"], [])
        key = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"]
        run(*key, str(self.directory / "service-accounts.key"))

    def issue(self, name: str, subject: str, addresses: tuple[str, ...] = ()) -> None:
        """A certificate for a client, and with addresses (`IP:…`, `DNS:…`) for a server too."""
        extensions = ["basicConstraints=critical,CA:FALSE", "extendedKeyUsage=clientAuth,serverAuth"]
        if addresses:
            extensions.append("subjectAltName=" + ",".join(addresses))
        signer = ["-CA", str(self.path("ca.crt")), "-CAkey", str(self.path("ca.key"))]
        self._openssl(name, subject, extensions, signer)

    def path(self, file: str) -> Path:
        return self.directory / file

    def kubeconfig(self, name: str, server: str) -> Path:
        """A kubeconfig that speaks for an issued certificate; it refers to the files by path."""
        path = self.directory / f"{name}.kubeconfig"
        path.write_text(
            "apiVersion: v1\n"
            "kind: Config\n"
            f"clusters: [{{name: local, cluster: {{server: '{server}', "
            f"certificate-authority: '{self.path('ca.crt')}'}}}}]\n"
            f"users: [{{name: '{name}', user: {{client-certificate: '{self.path(name + '.crt')}', "
            f"client-key: '{self.path(name + '.key')}'}}}}]\n"
            f"contexts: [{{name: local, context: {{cluster: local, user: '{name}'}}}}]\n"
            "current-context: local\n"
        )
        path.chmod(0o600)
        return path

    def _openssl(self, name: str, subject: str, extensions: list[str], signer: list[str]) -> None:
        config = self.directory / f"{name}.cnf"
        config.write_text(
            "[req]\ndistinguished_name = dn\nx509_extensions = ext\n[dn]\n[ext]\n"
            + "\n".join(line.replace("=", " = ", 1) for line in extensions)
            + "\n"
        )
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
        files = ["-keyout", str(self.path(f"{name}.key")), "-out", str(self.path(f"{name}.crt"))]
        command = ["openssl", "req", "-x509", "-config", str(config), "-subj", subject, "-days", str(DAYS)]
        run(*command, *kind, *files, *signer)
