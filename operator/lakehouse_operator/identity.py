"""Who this cluster is: what it signs with in buckets, so that two clusters never take one index for their own.

What the settings say, else what was written down the first time: the uid of the namespace kube-system, or where that
may not be read, of the release's own.  It is written into a ConfigMap of that namespace, so it stays the same over
upgrades and when rights change.  A new cluster has another one: what lies in the bucket is then taken over with the
adopt annotation.  What this module does not do: sign anything.
"""

import logging

from lakehouse.core.errors import Denied, LakehouseError
from lakehouse.runtime import Runtime
from lakehouse_operator import names
from lakehouse_operator.kube import CONFIG_MAP, NAMESPACE, Body, Exists, Kube
from lakehouse_operator.settings import Settings

logger = logging.getLogger(__name__)

KEY = "cluster"
UNKNOWN = "kubernetes"
"""Who may read neither uid, and was told nothing."""
AGAIN_S = 2.0


async def of_cluster(kube: Kube, runtime: Runtime, settings: Settings) -> str:
    """This cluster's name; waits for the API server.  Raises nothing."""
    if settings.cluster:
        return settings.cluster
    while True:
        try:
            return await _known(kube, settings)
        except LakehouseError as error:
            logger.warning("cannot ask who this cluster is: trying again. error=%s", error)
            await runtime.sleep(AGAIN_S)


async def _known(kube: Kube, settings: Settings) -> str:
    written = await _written(kube, settings)
    if written:
        return written
    found = await _uid(kube, "kube-system") or await _uid(kube, settings.namespace)
    if not found:
        logger.warning(
            "every cluster that may not read its own uid has the same name: set LAKEHOUSE_OPERATOR_CLUSTER. name=%s",
            UNKNOWN,
        )
        return UNKNOWN
    try:
        await kube.create(config_map(settings, found))
    except Exists:
        return await _written(kube, settings) or found
    except Denied as error:
        logger.warning("who this cluster is cannot be written down. error=%s", error)
    return found


async def _written(kube: Kube, settings: Settings) -> str:
    try:
        body = await kube.get(CONFIG_MAP, settings.namespace, settings.cluster_configmap)
    except Denied:
        return ""
    return str(((body or {}).get("data") or {}).get(KEY, ""))


async def _uid(kube: Kube, namespace: str) -> str:
    """Of a namespace; empty where it may not be read."""
    try:
        found = await kube.get(NAMESPACE, None, namespace)
    except Denied:
        return ""
    return str(found["metadata"]["uid"]) if found else ""


def config_map(settings: Settings, identity: str) -> Body:
    """What is written down.  Without our label for children: nobody's, and nothing removes it but people."""
    return {
        "apiVersion": "v1",
        "kind": str(CONFIG_MAP),
        "metadata": {
            "name": settings.cluster_configmap,
            "namespace": settings.namespace,
            "labels": {names.NAME_LABEL: "lakehouse"},
        },
        "data": {KEY: identity},
    }
