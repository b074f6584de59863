"""A node: containerd with runc and a bridge for pods, kubelet, kube-proxy, in a machine of its own.

What this does not know: the control plane, save its address.
"""

import ipaddress
import subprocess
import tempfile
from pathlib import Path

from . import archive
from .certificates import Authority
from .control_plane import DNS_SERVICE, PODS, SERVER
from .machine import Machine, run, wait_for
from .programs import program

PAUSE = "localhost/pause:1"
PAUSE_SOURCE = (
    "#include <signal.h>\n#include <unistd.h>\n"
    "static void end(int signal) { _exit(0); }\n"
    "int main(void) { signal(SIGTERM, end); signal(SIGINT, end); for (;;) pause(); }\n"
)
MOUNTS = {
    "tmpfs-run": "/run",
    "kubelet": "/var/lib/kubelet",
    "containerd": "/var/lib/containerd",
    "cni": "/var/lib/cni",
    "var-log": "/var/log",
    "srv": "/srv",
}
"""What a node keeps where every node does, without touching this machine's own."""

SOCKET = "/run/containerd/containerd.sock"


def pod_network(number: int) -> str:
    """The addresses of the pods on node `number`."""
    return str(list(ipaddress.ip_network(PODS).subnets(new_prefix=24))[number])


def issue(authority: Authority, machine: Machine) -> None:
    """What this node's kubelet and kube-proxy show to the API server."""
    addresses = (f"DNS:{machine.name}", f"IP:{machine.address}")
    authority.issue(machine.name, f"/O=system:nodes/CN=system:node:{machine.name}", addresses)
    authority.kubeconfig(machine.name, SERVER)
    authority.issue("kube-proxy", "/CN=system:kube-proxy")
    authority.kubeconfig("kube-proxy", SERVER)


def start(machine: Machine, authority: Authority, network: str) -> None:
    """Start the container runtime, then what makes a node of it."""
    directory = machine.directory
    machine.own_cgroup()
    machine.run(
        "sysctl", "-q", "-w", "net.bridge.bridge-nf-call-iptables=1"
    )  # Services, for pods side by side
    (directory / "network").mkdir(exist_ok=True)
    (directory / "network" / "10-bridge.conflist").write_text(_network_config(network))
    (directory / "containerd.toml").write_text(_containerd_config(directory / "network"))
    (directory / "kubelet.yaml").write_text(_kubelet_config(machine, authority))
    (directory / "proxy.yaml").write_text(_proxy_config(machine, authority))
    machine.spawn("containerd", "/usr/bin/containerd", "--config", str(directory / "containerd.toml"))
    ctr = machine.inside("ctr", "--address", SOCKET, "version")
    wait_for(lambda: subprocess.run(ctr, capture_output=True, check=False).returncode == 0, "containerd")
    import_image(machine, pause_archive(directory.parent))
    start_kubelet(machine)
    machine.spawn("kube-proxy", str(program("kube-proxy")), f"--config={directory / 'proxy.yaml'}")


def start_kubelet(machine: Machine) -> None:
    command = [str(program("kubelet")), f"--config={machine.directory / 'kubelet.yaml'}"]
    command += [f"--kubeconfig={machine.directory.parent / 'pki' / (machine.name + '.kubeconfig')}"]
    machine.spawn("kubelet", *command, f"--node-ip={machine.address}")


def stop_kubelet(machine: Machine) -> None:
    machine.end(str(program("kubelet")))


def import_image(machine: Machine, path: Path) -> None:
    """Make a docker-archive's image one that this node's pods can use."""
    machine.run("ctr", "--address", SOCKET, "--namespace", "k8s.io", "images", "import", str(path))


def pause_archive(directory: Path) -> Path:
    """The image that holds a pod's namespaces: a program that sleeps."""
    path = directory / "pause.tar"
    if not path.exists():
        with tempfile.TemporaryDirectory() as work:
            source, binary, layer = (Path(work) / name for name in ("pause.c", "pause", "layer.tar"))
            source.write_text(PAUSE_SOURCE)
            run("cc", "-static", "-Os", "-o", str(binary), str(source))
            archive.layer_of({"/pause": binary}, layer)
            archive.write(path, PAUSE, layer, entrypoint=["/pause"], user="65535")
    return path


def _network_config(network: str) -> str:
    return f"""{{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {{
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
      "ipam": {{
        "type": "host-local", "ranges": [[{{"subnet": "{network}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]
      }}
    }},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
  ]
}}
"""


def _containerd_config(network: Path) -> str:
    """`restrict_oom_score_adj`: without CAP_SYS_RESOURCE nobody lowers a score, and runc dies of trying."""
    return f"""version = 2
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{network}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def _kubelet_config(machine: Machine, authority: Authority) -> str:
    return f"""apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {authority.path("ca.crt")}}}
authorization: {{mode: Webhook}}
tlsCertFile: {authority.path(machine.name + ".crt")}
tlsPrivateKeyFile: {authority.path(machine.name + ".key")}
cgroupDriver: cgroupfs
cgroupRoot: {machine.cgroup}
clusterDNS: [{DNS_SERVICE}]
clusterDomain: cluster.local
resolvConf: ""
containerRuntimeEndpoint: unix://{SOCKET}
failSwapOn: false
oomScoreAdj: 0
evictionHard: {{memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
nodeStatusReportFrequency: 1m
serializeImagePulls: false
"""


def _proxy_config(machine: Machine, authority: Authority) -> str:
    """The limits of connection tracking belong to the whole machine: zero leaves them alone."""
    return f"""apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {{kubeconfig: {authority.path("kube-proxy.kubeconfig")}}}
clusterCIDR: {PODS}
hostnameOverride: {machine.name}
mode: iptables
oomScoreAdj: 0
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
"""
