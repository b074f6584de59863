"""The machine that holds etcd, the API server, the controllers, the scheduler and the cluster's name server.

CoreDNS runs beside the API server as a plain process behind a Service without selector, so that names resolve
before any pod runs.  What this does not know: nodes.
"""

from pathlib import Path

from .certificates import Authority
from .machine import Machine, run, wait_for
from .programs import program

ADDRESS = "10.231.0.2"
SERVER = f"https://{ADDRESS}:6443"
SERVICES = "10.233.0.0/16"
KUBERNETES_SERVICE = "10.233.0.1"
DNS_SERVICE = "10.233.0.10"
PODS = "10.232.0.0/16"
READY_S_MAX = 60
ADMISSION = "NodeRestriction,OwnerReferencesPermissionEnforcement,PodSecurity"
"""The second one refuses an owner reference to what one may not finalize: it finds gaps in an operator's rights."""

NAME_SERVER = f"""
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}
spec:
  clusterIP: {DNS_SERVICE}
  ports:
    - {{name: dns, port: 53, protocol: UDP}}
    - {{name: dns-tcp, port: 53, protocol: TCP}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: kube-dns-host, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}
addressType: IPv4
ports:
  - {{name: dns, port: 53, protocol: UDP}}
  - {{name: dns-tcp, port: 53, protocol: TCP}}
endpoints:
  - {{addresses: ["{ADDRESS}"], conditions: {{ready: true}}}}
"""


def issue(authority: Authority) -> None:
    """What the components here, and the administrator, show to each other."""
    names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
    addresses = tuple(f"DNS:{name}" for name in names)
    addresses += (f"IP:{ADDRESS}", f"IP:{KUBERNETES_SERVICE}", "IP:127.0.0.1")
    authority.issue("apiserver", "/CN=kube-apiserver", addresses)
    authority.issue("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client")
    for name, subject in (
        ("admin", "/O=system:masters/CN=admin"),
        ("controllers", "/CN=system:kube-controller-manager"),
        ("scheduler", "/CN=system:kube-scheduler"),
    ):
        authority.issue(name, subject)
        authority.kubeconfig(name, SERVER)


def start(machine: Machine, authority: Authority) -> None:
    """Start all of it; returns when the API server is ready."""
    machine.spawn("etcd", *_etcd(machine.directory / "etcd"))
    machine.spawn("apiserver", *_api_server(authority))
    kubectl = [str(program("kubectl")), "--kubeconfig", str(authority.path("admin.kubeconfig"))]
    wait_for(lambda: _is_ready(kubectl), "the API server to be ready", seconds=READY_S_MAX)
    for name, arguments in (("kube-controller-manager", _controllers(authority)), ("kube-scheduler", [])):
        config = str(authority.path(("controllers" if arguments else "scheduler") + ".kubeconfig"))
        identity = [f"--{kind}kubeconfig={config}" for kind in ("", "authentication-", "authorization-")]
        machine.spawn(name, str(program(name)), *identity, "--leader-elect=false", *arguments)
    corefile = machine.directory / "Corefile"
    corefile.write_text(_corefile(authority))
    machine.spawn("coredns", str(program("coredns")), "-conf", str(corefile))
    run(*kubectl, "apply", "-f", "-", text=NAME_SERVER)


def _etcd(data: Path) -> list[str]:
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return [
        str(program("etcd")),
        f"--data-dir={data}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
    ]


def _api_server(authority: Authority) -> list[str]:
    accounts = authority.path("service-accounts.key")
    return [
        str(program("kube-apiserver")),
        "--etcd-servers=http://127.0.0.1:2379",
        "--secure-port=6443",
        f"--advertise-address={ADDRESS}",
        f"--tls-cert-file={authority.path('apiserver.crt')}",
        f"--tls-private-key-file={authority.path('apiserver.key')}",
        f"--client-ca-file={authority.path('ca.crt')}",
        f"--kubelet-client-certificate={authority.path('kubelet-client.crt')}",
        f"--kubelet-client-key={authority.path('kubelet-client.key')}",
        "--kubelet-preferred-address-types=InternalIP",  # names of nodes resolve nowhere
        f"--service-account-key-file={accounts}",
        f"--service-account-signing-key-file={accounts}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={SERVICES}",
        "--authorization-mode=Node,RBAC",
        f"--enable-admission-plugins={ADMISSION}",
        "--allow-privileged=true",
        "--profiling=false",
    ]


def _controllers(authority: Authority) -> list[str]:
    return [
        f"--service-account-private-key-file={authority.path('service-accounts.key')}",
        f"--root-ca-file={authority.path('ca.crt')}",
        "--use-service-account-credentials=true",
    ]


def _corefile(authority: Authority) -> str:
    return f""".:53 {{
  bind {ADDRESS}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {authority.path("admin.kubeconfig")} local
    ttl 1
  }}
  cache 1
}}
"""


def _is_ready(kubectl: list[str]) -> bool:
    from . import EngineError

    try:
        return run(*kubectl, "get", "--raw", "/readyz", "--request-timeout=5s") == "ok"
    except EngineError:
        return False
