"""What the parts of a declared thing are called: the same for the same thing, whoever computes it, and never too long.

An index's Service has the index's name; everything else has that name and what it is.  A name that would be longer
than its kind allows is cut, and a hash of the whole put in, so that two long names never meet.  What this module does
not do: find out whether a name is taken.
"""

import hashlib
import json
from typing import Any

GROUP = "lakehouse.agentview.dev"
MANAGED_BY = "lakehouse-operator"
NAME_LABEL = "app.kubernetes.io/name"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
COMPONENT_LABEL = "app.kubernetes.io/component"
INDEX_LABEL = f"{GROUP}/index"
DATASET_LABEL = f"{GROUP}/dataset"
SHARD_LABEL = f"{GROUP}/shard"
ACT_ANNOTATION = f"{GROUP}/act"
SUBJECT_ANNOTATION = f"{GROUP}/subject"
ATTEMPT_ANNOTATION = f"{GROUP}/attempt"
MAKE_ANNOTATION = f"{GROUP}/make"
RELEASE_ANNOTATION = f"{GROUP}/release"
"""On a Deployment: a hash of what the operator itself decides about its pods; an upgrade of the operator changes it."""
ASKED_ANNOTATION = f"{GROUP}/asked"
"""On a Deployment: a hash of what its index's spec says about its pods; a change of that rolls them at once."""
SUSPENDED_ANNOTATION = f"{GROUP}/suspended"
"""On a Deployment: it has no pods because the index is suspended."""
MOUNTED = f"mounted.{GROUP}"
"""Before the names of Secrets, in annotations of pods: which version of each a pod is to have as files."""
FINALIZER = f"{GROUP}/cleanup"
PEER_KEY_SECRET = "lakehouse-peer-key"
PEER_KEY = "peer-key"
PORT = 3110

LABEL_MAX = 63
"""Characters of a Service's name, and of a label's value."""
JOB_MAX = 60
"""An Indexed Job's pods are called after it and their number, up to `-63`, in a label's room."""
SHARDS_MAX = 64
_HASH = 8


def digest(text: str) -> str:
    """Eight hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH]


def digest_of(value: Any) -> str:
    """The same of what can be said in JSON, whatever the order of its fields."""
    return digest(json.dumps(value, sort_keys=True))


def fitted(name: str, suffix: str, most: int = LABEL_MAX) -> str:
    """`name` and `suffix`, in at most so many characters: where they are more, the name is cut and hashed."""
    room = most - len(suffix)
    if len(name) <= room:
        return f"{name}{suffix}"
    return f"{name[: room - _HASH - 1].rstrip('-.')}-{digest(name)}{suffix}"


def service(index: str) -> str:
    """Of the whole index: any of its pods."""
    return index


def _shards(index: str) -> str:
    """What every shard's name begins with; as long for one shard as for the last of many."""
    return fitted(index, "-shard-", LABEL_MAX - len(str(SHARDS_MAX - 1)))


def shard(index: str, number: int) -> str:
    """The Deployment, the headless Service and the PodDisruptionBudget of one shard."""
    return f"{_shards(index)}{number}"


def certificates(kind: str, name: str) -> str:
    """The ConfigMap with the certificates that the endpoint of an index or dataset is checked against."""
    return fitted(name, f"-{kind.lower()}-ca")


def job(owner: str, act: str, seed: str) -> str:
    """A Job: `products-build-1f0c22aa`.  Another `seed` is another Job."""
    return fitted(owner, f"-{act.lower()}-{digest(seed)}", JOB_MAX)


def mounted_annotation(secret: str) -> str:
    """On a pod: the version of a Secret that it was told of."""
    return f"{MOUNTED}/{fitted(secret, '')}"


def url(index: str, namespace: str) -> str:
    """Where any pod of the index answers."""
    return f"http://{service(index)}.{namespace}.svc:{PORT}"


def shard_url(index: str, namespace: str) -> str:
    """Where every ready pod of a shard answers, with `{shard}` for its number."""
    return f"http://{_shards(index)}{{shard}}.{namespace}.svc:{PORT}"


def selector(index: str, number: int | None = None) -> dict[str, str]:
    """The labels that the pods of an index have, or those of one of its shards, and no others."""
    of_shard = {} if number is None else {SHARD_LABEL: str(number)}
    return {COMPONENT_LABEL: "index", INDEX_LABEL: index, **of_shard}


def labels(component: str, **of: str) -> dict[str, str]:
    """Of everything that the operator makes; `of` is the kind's word and the name: `index="products"`."""
    told = {f"{GROUP}/{word}": name for word, name in of.items()}
    return {NAME_LABEL: "lakehouse", MANAGED_BY_LABEL: MANAGED_BY, COMPONENT_LABEL: component, **told}
