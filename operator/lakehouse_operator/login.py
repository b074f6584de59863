"""Where the API server is and who we are: kopf's own logins, one for both its watches and our requests.

`KUBECONFIG` when it is set (how people run the operator on their own machine), else the pod's ServiceAccount, else
`~/.kube/config`.  What this module does not do: run the programs that a kubeconfig may name to get a token.
"""

import os

import kopf

from lakehouse.core.errors import Denied


def login() -> kopf.ConnectionInfo:
    """Read anew what is mounted or configured.  Raises `Denied` when there is nothing, or nothing that can be read."""
    settings = kopf.OperatorSettings()
    readers = [kopf.login_with_service_account, kopf.login_with_kubeconfig]
    if os.environ.get("KUBECONFIG"):
        readers.reverse()
    for reader in readers:
        try:
            found = reader(settings=settings)
        except Exception as error:  # a file that is missing, no YAML, or names what is not in it
            raise Denied(
                f"the cluster's credentials cannot be read: {error!r}. kubeconfig=`{os.environ.get('KUBECONFIG', '')}`",
                authenticated=False,
            ) from error
        if found is not None:
            return found
    raise Denied(
        "there are no credentials for a cluster: run in a pod with a ServiceAccount, or set KUBECONFIG",
        authenticated=False,
    )
