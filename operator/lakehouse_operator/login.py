"""Where the API server is and who we are: kopf's own logins, one for both its watches and our requests.

`KUBECONFIG` when it is set (how people run the operator on their own machine), else the pod's ServiceAccount, else
`~/.kube/config`.  What this module does not do: run the programs that a kubeconfig may name to get a token.
"""

import os

import kopf

from lakehouse.core.errors import Denied


def login() -> kopf.ConnectionInfo:
    """Read anew what is mounted or configured.  Raises `Denied` when there is nothing."""
    settings = kopf.OperatorSettings()
    readers = [kopf.login_with_service_account, kopf.login_with_kubeconfig]
    if os.environ.get("KUBECONFIG"):
        readers.reverse()
    for reader in readers:
        found = reader(settings=settings)
        if found is not None:
            return found
    raise Denied(
        "there are no credentials for a cluster: run in a pod with a ServiceAccount, or set KUBECONFIG",
        authenticated=False,
    )
