"""Long actions as Kubernetes Jobs: their bodies, and what became of those there are.

A Job carries its act, subject and attempt as annotations and its task in the pod's environment, so whoever looks,
after any restart, knows what runs, what failed and how often.  A Job is never retried by Kubernetes: the next attempt
is another Job, after a wait that `lakehouse.control` chooses.  What this module does not do: create or delete one.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from lakehouse.control.kinds import VECTOR_INDEX
from lakehouse.control.plan import Action, BuildIndex, Ingest, RebuildIndex, RestoreIndex
from lakehouse.control.state import Act, Failure, Resource, Running
from lakehouse.core.types import IndexParams
from lakehouse_operator import names, resources
from lakehouse_operator.resources import Body
from lakehouse_operator.settings import Settings
from lakehouse_operator.targets import Target

ACTS = (Act.BUILD, Act.RESTORE, Act.REBUILD, Act.INGEST)
"""What is done by Jobs; other long actions are calls to pods."""
DEADLINE_S = 6 * 3_600
"""Of a Job that builds or restores an index: a shard of ten million vectors takes some hours on two cores."""
START_S = 45
"""Beyond its own deadline, which an ingest keeps by itself and tells of: so long a pod may take to start."""
KEPT_S = 3_600
"""A Job that has ended stays so long: longer than the longest wait before the next attempt, which counts it."""
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
MESSAGE_MAX = 1_000
TASK_VARIABLE = "LAKEHOUSE_TASK"


# ---- making ---------------------------------------------------------------------------------------------------------


def seed(resource: Resource[Any], action: Action, attempt: int, record: int, after: str, make: str) -> str:
    """What tells a Job from every other: `record` is the index's newest record, `after` the last ended Job's uid.

    The same while nothing has happened, so a Job that was created twice is one.
    """
    return "/".join((resource.meta.uid, action.act, action.subject, str(attempt), str(record), after, make))


def life(seeded: str) -> UUID:
    """The life that a Job makes: the same for every pod of it, and for no other Job."""
    return uuid5(NAMESPACE_URL, f"lakehouse:{seeded}")


def params(asked: IndexParams) -> dict[str, Any]:
    """As a task carries them."""
    return {**asked.to_json(), "ef_construction": asked.ef_construction}


def build_task(action: BuildIndex, of_life: UUID, dataset_url: str | None) -> dict[str, Any]:
    """What a pod of a build is told."""
    return {
        "act": action.act.value,
        "params": params(action.params),
        "shards": action.shards,
        "owner": action.owner,
        "origin": dict(action.origin),
        "replaces": action.replaces,
        "adopts": action.adopts,
        "life": of_life.hex,
        "dataset": action.dataset,
        "version": action.version,
        "id_column": action.id_column,
        "vector_column": action.vector_column,
        "metadata_columns": list(action.metadata_columns),
        "dataset_url": dataset_url,
    }


def restore_task(
    action: RestoreIndex, of_life: UUID, files: Sequence[str] | None, uri: str | None
) -> dict[str, Any]:
    """`files` are keys of the index's own store; else `uri` leads to what is restored."""
    return {
        "act": action.act.value,
        "params": params(action.params),
        "shards": action.shards,
        "owner": action.owner,
        "origin": dict(action.origin),
        "life": of_life.hex,
        "files": None if files is None else list(files),
        "uri": uri,
    }


def rebuild_task(action: RebuildIndex, of_life: UUID) -> dict[str, Any]:
    """The items, owner and origin are those of the life there is."""
    return {
        "act": action.act.value,
        "params": params(action.params),
        "index": action.params.name,
        "life": of_life.hex,
    }


def ingest_task(action: Ingest, dataset: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """`spec` is the Dataset's, as the API server defaulted it."""
    return {"act": action.act.value, "dataset": dataset, "spec": spec}


def job(
    resource: Resource[Any],
    action: Action,
    task: Mapping[str, Any],
    where: Target,
    settings: Settings,
    *,
    seeded: str,
    attempt: int,
) -> Body:
    """The Job that does `task`; of one pod per shard where the action is a build."""
    meta = resource.meta
    of_index = action.act is not Act.INGEST
    annotations = {
        names.ACT_ANNOTATION: action.act.value,
        names.SUBJECT_ANNOTATION: action.subject,
        names.ATTEMPT_ANNOTATION: str(attempt),
        names.MAKE_ANNOTATION: make(resource, where, settings),
    }
    pods = task["shards"] if action.act is Act.BUILD else 1
    name = names.job(meta.name, action.act.value, seeded)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": resources.metadata(resource, name, _labels(resource), **annotations),
        "spec": {
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            "backoffLimit": 0,
            "activeDeadlineSeconds": DEADLINE_S if of_index else resource.spec.deadline_s + START_S,
            "ttlSecondsAfterFinished": KEPT_S,
            "template": _template(resource, task, where, settings),
        },
    }


def make(resource: Resource[Any], where: Target, settings: Settings) -> str:
    """A hash of how the pods of a resource's Jobs are made, whatever their task: resources, place, image, identity."""
    return names.digest_of(_template(resource, {}, where, settings))


def _labels(resource: Resource[Any]) -> dict[str, str]:
    return resources.labels(resource, "build" if resource.kind == VECTOR_INDEX else "ingest")


def _template(resource: Resource[Any], task: Mapping[str, Any], where: Target, settings: Settings) -> Body:
    asked = resource.spec.pod if resource.kind == VECTOR_INDEX else resource.spec.job
    wanted = {**settings.pod_defaults, **(asked or {})}
    return {
        "metadata": resources.pod_metadata(_labels(resource), wanted),
        "spec": _pod(resource, task, where, settings, wanted),
    }


def _pod(
    resource: Resource[Any],
    task: Mapping[str, Any],
    where: Target,
    settings: Settings,
    wanted: Mapping[str, Any],
) -> Body:
    told = {TASK_VARIABLE: json.dumps(task, separators=(",", ":"), sort_keys=True)}
    return {
        **resources.pod(resource, where, settings, wanted),
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": resources.GRACE_S,
        "containers": [
            {
                **resources.container(where, settings, wanted),
                "name": "work",
                "args": ["work"],
                "env": [
                    *resources.environment(where),
                    *resources.variables(told),
                    *(wanted.get("env") or ()),
                ],
                "terminationMessagePolicy": "FallbackToLogsOnError",
            }
        ],
    }


# ---- what became of them --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """One Job, as it is now."""

    name: str
    namespace: str
    uid: str
    act: Act
    subject: str
    attempt: int
    started_at: datetime
    ended_at: datetime | None = None
    failed: bool = False
    reason: str = ""
    """Why it failed: an error's class where it could tell, else `JobFailed`."""
    message: str = ""
    progress: str = ""
    pods: int = 0
    """There are."""
    started: bool = True
    """A pod of it has run."""
    as_now: bool = True
    """Its pods are made as they would be made now."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """What it told of itself when it ended well."""

    @property
    def running(self) -> Running:
        """As decisions see it."""
        return Running(
            self.act, self.subject, self.started_at, self.progress, started=self.started, as_now=self.as_now
        )

    @property
    def failure(self) -> Failure:
        """As decisions see it."""
        at = self.ended_at or self.started_at
        return Failure(
            self.act, self.subject, self.reason, self.message, at, self.attempt, as_now=self.as_now
        )


def seen(job: Mapping[str, Any], pods: Iterable[Mapping[str, Any]], now: str = "") -> Seen | None:
    """What a Job of ours says, with its pods' last words; None for one that says no act.

    `now` is how its pods would be made now; empty where that is not known.
    """
    meta = job["metadata"]
    told = meta.get("annotations") or {}
    if told.get(names.ACT_ANNOTATION) not in [act.value for act in ACTS]:
        return None
    status = job.get("status") or {}
    mine = [one for one in pods if (one["metadata"].get("labels") or {}).get(JOB_NAME_LABEL) == meta["name"]]
    ended = _condition(status, "Complete") or _condition(status, "Failed")
    failed = ended is not None and ended["type"] == "Failed"
    words = [word for one in mine if (word := last_word(one)) is not None]
    reason, message = _why(ended or {}, words, mine) if failed else ("", "")
    return Seen(
        name=meta["name"],
        namespace=meta.get("namespace", ""),
        uid=meta["uid"],
        act=Act(told[names.ACT_ANNOTATION]),
        subject=told.get(names.SUBJECT_ANNOTATION, ""),
        attempt=_whole(told.get(names.ATTEMPT_ANNOTATION, "1")),
        started_at=begun_at(job),
        ended_at=_moment(ended["lastTransitionTime"]) if ended is not None else None,
        failed=failed,
        reason=reason,
        message=message,
        progress="" if ended is not None else _progress(job, mine),
        pods=len(mine),
        started=has_started(job, mine),
        as_now=not now or told.get(names.MAKE_ANNOTATION, now) == now,
        result=next((word["result"] for word in words if isinstance(word.get("result"), Mapping)), {}),
    )


def begun_at(job: Mapping[str, Any]) -> datetime:
    """Since when there is a Job to run."""
    return _moment((job.get("status") or {}).get("startTime") or job["metadata"]["creationTimestamp"])


def has_started(job: Mapping[str, Any], pods: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any of a Job's `pods` has run: they say so a moment before the Job's status does, and may be gone."""
    status = job.get("status") or {}
    counted = any(status.get(count) for count in ("ready", "succeeded", "failed"))
    return counted or any(_has_run(one) for one in pods)


def _has_run(pod: Mapping[str, Any]) -> bool:
    containers = (pod.get("status") or {}).get("containerStatuses") or ()
    return any({"running", "terminated"} & set(one.get("state") or {}) for one in containers)


def last_word(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the pod's process said of its end, in JSON; None where it said nothing that can be read."""
    text = _terminated(pod).get("message", "")
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, Mapping) and "ok" in found else None


def _why(
    ended: Mapping[str, Any], words: Sequence[Mapping[str, Any]], pods: Sequence[Mapping[str, Any]]
) -> tuple[str, str]:
    told = next((word for word in words if word.get("ok") is False), None)
    if told is not None:
        return str(told.get("reason") or "JobFailed"), str(told.get("message", ""))[:MESSAGE_MAX]
    if ended.get("reason") == "DeadlineExceeded":
        return "DeadlineExceeded", str(ended.get("message", "it took longer than it may"))
    for one in pods:
        end = _terminated(one)
        if end.get("reason") == "OOMKilled":
            return "JobFailed", "a pod ran out of memory: give it more by resources.limits.memory"
        if one.get("status", {}).get("reason"):
            status = one["status"]
            return "JobFailed", f"{status['reason']}: {status.get('message', '')}"[:MESSAGE_MAX]
        if end.get("exitCode"):
            said = str(end.get("message", "")).strip()[-MESSAGE_MAX:]
            return "JobFailed", f"a pod ended with code {end['exitCode']}: {said or end.get('reason', '')}"
    return "JobFailed", str(ended.get("message") or "the Job failed, and its pods are gone")


def _progress(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> str:
    stuck = next((why for one in pods if (why := waiting_for(one))), "")
    if stuck:
        return stuck
    asked, done = job["spec"].get("completions", 1), (job.get("status") or {}).get("succeeded", 0)
    return f"{done} of {asked} shards" if asked > 1 else ""


def waiting_for(pod: Mapping[str, Any]) -> str:
    """Why a pod has not started: no node for it, no image, no Secret; empty when it has, or is about to."""
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}".removesuffix(": ")[:MESSAGE_MAX]
    scheduled = _condition(status, "PodScheduled", "False")
    if scheduled is not None:
        return f"{scheduled.get('reason', '')}: {scheduled.get('message', '')}"[:MESSAGE_MAX]
    return ""


def _terminated(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        found: Mapping[str, Any] | None = (container.get("state") or {}).get("terminated")
        if found:
            return found
    return {}


def _condition(status: Mapping[str, Any], kind: str, wanted: str = "True") -> Mapping[str, Any] | None:
    for one in status.get("conditions") or ():
        if one["type"] == kind and one["status"] == wanted:
            found: Mapping[str, Any] = one
            return found
    return None


def _whole(text: str) -> int:
    return max(1, int(text)) if text.isdigit() else 1


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


@dataclass(frozen=True, slots=True)
class Ledger:
    """The Jobs of one resource: what runs, what failed last, what ended well last."""

    running: Seen | None
    ended: Mapping[Act, Seen]
    """The newest of each act that has ended."""

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Of each act whose newest Job failed."""
        return tuple(one.failure for one in self.ended.values() if one.failed)

    def succeeded(self, act: Act) -> Seen | None:
        """The newest of an act, if it ended well."""
        found = self.ended.get(act)
        return None if found is None or found.failed else found

    def attempt(self, action: Action) -> int:
        """Which attempt the next Job of an action is."""
        last = self.ended.get(action.act)
        again = last is not None and last.failed and last.subject == action.subject
        return last.attempt + 1 if last is not None and again else 1

    def after(self, act: Act) -> str:
        """The uid of the newest Job of an act that has ended; empty for none."""
        return self.ended[act].uid if act in self.ended else ""


def ledger(
    jobs: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]], uid: str, now: str = ""
) -> Ledger:
    """Of the Jobs that belong to the resource of that `uid`; one that is being deleted does not count.

    `now` is as for `seen`.
    """
    pods = list(pods)
    ours = (one for one in jobs if not one["metadata"].get("deletionTimestamp") and belongs(one, uid))
    found = [one for job in ours if (one := seen(job, pods, now)) is not None]
    ended = sorted(
        (one for one in found if one.ended_at is not None), key=lambda one: (one.ended_at, one.name)
    )
    running = sorted(
        (one for one in found if one.ended_at is None), key=lambda one: (one.started_at, one.name)
    )
    return Ledger(running[0] if running else None, {one.act: one for one in ended})


def is_running(body: Mapping[str, Any]) -> bool:
    """Whether a Job has not ended, and is not being deleted."""
    status = body.get("status") or {}
    ended = _condition(status, "Complete") or _condition(status, "Failed")
    return ended is None and not body["metadata"].get("deletionTimestamp")


def ending(pods: Iterable[Mapping[str, Any]]) -> Running | None:
    """The work whose Job is gone and whose pods have not ended: they may still write."""
    for one in pods:
        labels, meta = one["metadata"].get("labels") or {}, one["metadata"]
        ended = (one.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if JOB_NAME_LABEL in labels and not ended:
            act = Act.INGEST if names.DATASET_LABEL in labels else Act.BUILD
            told = f"pod {meta['name']} has been stopped and still ends"
            return Running(act, "", _moment(meta["creationTimestamp"]), told)
    return None


def task_of(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a Job's pods are told to do; empty where that cannot be read."""
    for container in body["spec"]["template"]["spec"]["containers"]:
        for variable in container.get("env") or ():
            if variable["name"] == TASK_VARIABLE:
                try:
                    found = json.loads(variable.get("value", ""))
                except ValueError:
                    return {}
                return found if isinstance(found, Mapping) else {}
    return {}


def belongs(body: Mapping[str, Any], uid: str) -> bool:
    """Whether an object's controller is the resource of that `uid`."""
    owners = body["metadata"].get("ownerReferences") or ()
    return any(one.get("controller") and one.get("uid") == uid for one in owners)
