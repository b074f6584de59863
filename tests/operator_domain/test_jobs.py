"""What Jobs and the last words of their pods come to, from bodies as a cluster shows them."""

import json
from typing import Any

import pytest

from cluster_samples import dataset, index, settings, where
from lakehouse.control import plan
from lakehouse.control.state import Act
from lakehouse.core.types import IndexParams
from lakehouse_operator import jobs, names

REBUILD = plan.RebuildIndex(IndexParams("products", 3, m=32))
FAILED = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "has failed"}


def job(at: int = 0, *conditions: dict[str, Any], attempt: int = 1, **changes: Any) -> dict[str, Any]:
    """A Job as it is stored; `at` is the minute of its last condition."""
    body = jobs.job(
        index(),
        REBUILD,
        jobs.rebuild_task(REBUILD, jobs.life("s")),
        where(),
        settings(),
        seeded=str(at),
        attempt=attempt,
    )
    body["metadata"] |= {
        "uid": f"job-{at}",
        "creationTimestamp": "2026-05-04T12:00:00Z",
        **changes,
    }
    ended = [{**one, "lastTransitionTime": f"2026-05-04T12:{at:02}:00Z"} for one in conditions]
    body["status"] = {"startTime": f"2026-05-04T12:{at:02}:00Z", "conditions": ended}
    return body


def pod(of: dict[str, Any], state: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {"name": "p", "labels": {jobs.JOB_NAME_LABEL: of["metadata"]["name"]}},
        "status": {"containerStatuses": [{"state": state}], **status},
    }


def said(**word: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": 0 if word["ok"] else 1, "message": json.dumps(word)}}


def only(found: dict[str, Any], *pods: dict[str, Any]) -> jobs.Seen:
    made = jobs.seen(found, pods)
    assert made is not None
    return made


def test_a_job_says_what_it_does_and_how_often_it_was_tried() -> None:
    found = only(job(attempt=3))
    assert (found.act, found.subject, found.attempt) == (Act.REBUILD, REBUILD.subject, 3)
    assert found.ended_at is None
    assert found.running.act is Act.REBUILD
    assert jobs.is_running(job())
    assert not jobs.is_running(job(0, FAILED))


def test_a_failed_job_tells_what_its_pod_said() -> None:
    body = job(1, FAILED, attempt=2)
    failure = only(body, pod(body, said(ok=False, reason="Corrupt", message="it is broken"))).failure
    assert (failure.reason, failure.message, failure.attempts) == ("Corrupt", "it is broken", 2)


@pytest.mark.parametrize(
    ("condition", "state", "status", "reason", "message"),
    [
        ({**FAILED, "reason": "DeadlineExceeded", "message": "longer"}, {}, {}, "DeadlineExceeded", "longer"),
        (FAILED, {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, {}, "JobFailed", "out of memory"),
        (
            FAILED,
            {"terminated": {"exitCode": 2, "message": "Traceback"}},
            {},
            "JobFailed",
            "code 2: Traceback",
        ),
        (FAILED, {"terminated": {"exitCode": 1, "reason": "Error"}}, {}, "JobFailed", "code 1: Error"),
        (FAILED, {}, {"reason": "Evicted", "message": "disk"}, "JobFailed", "Evicted: disk"),
        (FAILED, {"terminated": {"exitCode": 1, "message": "[1]"}}, {}, "JobFailed", "code 1: [1]"),
    ],
)
def test_a_job_that_said_nothing_is_told_of_by_its_end(
    condition: dict[str, Any], state: dict[str, Any], status: dict[str, Any], reason: str, message: str
) -> None:
    body = job(1, condition)
    found = only(body, pod(body, state, **status))
    assert found.reason == reason
    assert message in found.message


def test_a_failed_job_without_pods_tells_what_the_cluster_says() -> None:
    assert only(job(1, FAILED)).message == "has failed"


def test_a_pod_that_cannot_start_is_the_jobs_progress() -> None:
    body = job()
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    assert only(body, pod(body, waiting)).progress == "ImagePullBackOff: no such image"
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes",
    }
    assert only(body, pod(body, {}, conditions=[unscheduled])).progress == "Unschedulable: 0/3 nodes"
    assert only(body, pod(body, {"waiting": {"reason": "ContainerCreating"}})).progress == ""


def test_a_job_has_started_when_any_of_its_pods_has_run() -> None:
    body = job()
    assert not only(body).started
    assert not only(body, pod(body, {"waiting": {"reason": "ImagePullBackOff"}})).started
    assert only(body, pod(body, {"running": {}})).running.started
    body["status"]["ready"] = 1
    assert only(body).started  # its controller says so


def test_a_job_of_another_make_is_told_from_one_that_would_be_made_so_now() -> None:
    def made(**spec: Any) -> str:
        return jobs.make(index(**spec), where(), settings())

    small, large = made(), made(pod={"resources": {"limits": {"memory": "8Gi"}}})
    placed = made(pod={"nodeSelector": {"disk": "fast"}})
    image = jobs.make(index(), where(), settings(image="registry.example/lakehouse:2"))
    assert len({small, large, placed, image}) == 4
    assert small == made(hnsw={"m": 32})  # what is done is the task's business
    waits, failed = job(), job(1, FAILED)
    for now, as_now in ((small, True), (large, False), ("", True)):
        found = jobs.ledger([waits, failed], [], "uid-products", now)
        assert found.running is not None
        assert found.running.running.as_now is as_now
        assert [one.as_now for one in found.failures] == [as_now]


def test_the_ledger_has_what_runs_and_the_newest_end_of_each_act() -> None:
    complete = {"type": "Complete", "status": "True"}
    first, second, running = job(1, FAILED), job(2, complete), job(3)
    pods = [pod(second, said(ok=True, result={"version": 3}))]
    found = jobs.ledger([running, second, first], pods, "uid-products")
    assert found.running is not None
    assert found.running.uid == "job-3"
    assert found.failures == ()  # made good since
    made = found.succeeded(Act.REBUILD)
    assert made is not None
    assert made.result == {"version": 3}
    assert found.after(Act.REBUILD) == "job-2"
    assert found.after(Act.BUILD) == ""


def test_the_next_attempt_counts_on_and_another_wish_begins_anew() -> None:
    found = jobs.ledger([job(1, FAILED, attempt=4)], [], "uid-products")
    assert found.attempt(REBUILD) == 5
    assert found.attempt(plan.RebuildIndex(IndexParams("products", 3, m=64))) == 1


def test_jobs_of_others_and_those_that_go_do_not_count() -> None:
    going = job(1, deletionTimestamp="2026-05-04T12:00:00Z")
    assert jobs.ledger([going, job(2)], [], "uid-of-another").running is None
    assert jobs.ledger([going], [], "uid-products").running is None


def test_a_job_is_named_for_the_state_it_was_decided_in() -> None:
    def name(attempt: int = 1, record: int = 3, after: str = "", make: str = "") -> str:
        return names.job("products", "Rebuild", jobs.seed(index(), REBUILD, attempt, record, after, make))

    assert name() == name()
    assert len({name(), name(2), name(1, 4), name(1, 3, "job-1"), name(1, 3, "", "other")}) == 5
    assert jobs.life("a") != jobs.life("b")


def test_the_task_can_be_read_back_and_by_whom_it_is_for() -> None:
    from lakehouse.jobs import tasks

    action = plan.BuildIndex(
        IndexParams("products", 3), 2, "me", "catalog", 7, "id", "v", ("price",), False, "key"
    )
    restore = plan.RestoreIndex(IndexParams("products", 3), 1, "me", "nightly", None)
    for task in (
        jobs.build_task(action, jobs.life("s"), "s3://other"),
        jobs.restore_task(restore, jobs.life("s"), ("a.lhv1",), None),
        jobs.rebuild_task(REBUILD, jobs.life("s")),
        jobs.ingest_task(plan.Ingest("k"), "catalog", {"sources": [{"uri": "s3://raw/a.csv"}]}),
    ):
        resource = dataset() if task["act"] == "Ingest" else index()
        asked = plan.Ingest("k") if task["act"] == "Ingest" else action
        body = jobs.job(resource, asked, task | {"shards": 2}, where(), settings(), seeded="s", attempt=1)
        assert jobs.task_of(body) == task | {"shards": 2}
        read = tasks.parse(json.dumps(task))
        assert type(read).__name__ == task["act"]
    built = tasks.parse(json.dumps(jobs.build_task(action, jobs.life("s"), None)))
    assert isinstance(built, tasks.Build)
    assert (built.params, built.life, built.origin) == (action.params, jobs.life("s"), action.origin)
