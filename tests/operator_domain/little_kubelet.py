"""What a cluster does with Deployments and Jobs, as far as a test needs it: one real process per shard, or per Job.

Pods are told where they are by addresses of the loopback network, as there is no DNS here; everything else of a
container's environment is what the operator wrote, Secrets included.
"""

import asyncio
import base64
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from lakehouse_operator import names
from lakehouse_operator.kube import DEPLOYMENT, JOB, KINDS, POD, SECRET, Body
from operator_domain.lake import Lake, until


@dataclass
class LittleKubelet:
    """Runs the pods of one namespace, one per shard, until the end of the `with`."""

    lake: Lake
    folder: Path
    net: int = field(default_factory=lambda: random.randint(16, 250))
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    async def run(self) -> None:
        while True:
            for body in await self._list(DEPLOYMENT):
                await self._deployment(body)
            for body in await self._list(JOB):
                if body["metadata"]["uid"] not in self.done:
                    self.done.add(body["metadata"]["uid"])
                    await self._job(body)
            await asyncio.sleep(0.1)

    async def _list(self, kind: str) -> list[Body]:
        return await self.lake.where.kube.list(KINDS[kind], self.lake.where.namespace)

    # ------------------------------------------------------------ Deployments

    def address(self, index: str, shard: str) -> str:
        """Of the pod of a shard; `{shard}` gives the template."""
        return f"127.{self.net}.{1 + int(names.digest(index), 16) % 250}.1{shard}"

    async def _deployment(self, body: Body) -> None:
        name = body["metadata"]["name"]
        running = self.processes.get(name)
        if body["spec"]["replicas"] == 0 and running is not None:
            await self._end(name)
        if body["spec"]["replicas"] > 0 and running is None:
            await self._begin(body)

    async def _begin(self, body: Body) -> None:
        name, template = body["metadata"]["name"], body["spec"]["template"]
        labels = template["metadata"]["labels"]
        index, shard = labels[names.INDEX_LABEL], labels[names.SHARD_LABEL]
        address = self.address(index, shard)
        place = {
            "LAKEHOUSE_HOST": address,
            "LAKEHOUSE_SHARD_URL": f"http://{self.address(index, '{shard}')}:{names.PORT}",
            "LAKEHOUSE_DRAIN_S": "0",
        }
        environment = await self._environment(template, place)
        self.processes[name] = self._process(name, "serve", environment)
        await self._pod(name, template)
        url = f"http://{address}:{names.PORT}/readyz"
        await until(lambda: self._ready(name, url), f"{name} is ready:\n{self.log(name)}")
        ready = [{"type": "Ready", "status": "True"}]
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        await self.lake.status(POD, name, {**status, "conditions": ready})
        counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 1)
        await self.lake.status(
            DEPLOYMENT, name, {"observedGeneration": body["metadata"]["generation"], **counts}
        )

    def _ready(self, name: str, url: str) -> bool:
        assert self.processes[name].poll() is None, self.log(name)
        try:
            return httpx.get(url, timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    async def _pod(self, name: str, template: Body) -> None:
        meta = {
            "name": name,
            "namespace": self.lake.where.namespace,
            "labels": template["metadata"]["labels"],
        }
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
        await self.lake.where.kube.create(body)

    async def _end(self, name: str) -> None:
        self._kill(name)
        path = KINDS[POD].path(self.lake.where.namespace, name)
        await self.lake.where.kube._ask("DELETE", path, {"gracePeriodSeconds": 0})

    # ------------------------------------------------------------------- Jobs

    async def _job(self, body: Body) -> None:
        name, template = body["metadata"]["name"], body["spec"]["template"]
        labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": name}
        asked = range(body["spec"]["completions"])
        told = await asyncio.gather(
            *(self._part(f"{name}-{index}", index, template, labels) for index in asked)
        )
        at = await self._now()
        good = not any(told)
        kinds = ("SuccessCriteriaMet", "Complete") if good else ("FailureTarget", "Failed")
        conditions = [
            {"type": kind, "status": "True", "reason": "x", "lastTransitionTime": at} for kind in kinds
        ]
        ended: dict[str, Any] = {"completionTime": at, "succeeded": len(told)} if good else {"failed": 1}
        if body["spec"].get("completionMode") == "Indexed" and good:
            ended["completedIndexes"] = "0" if len(told) == 1 else f"0-{len(told) - 1}"
        await self.lake.status(JOB, name, {"startTime": at, "conditions": conditions, **ended})

    async def _part(self, pod: str, index: int, template: Body, labels: dict[str, str]) -> int:
        """One pod of a Job, from its start to its last word; its exit status."""
        word = self.folder / f"{pod}.json"
        extra = {"JOB_COMPLETION_INDEX": str(index), "LAKEHOUSE_TERMINATION_LOG": str(word)}
        environment = await self._environment(template, extra)
        process = self.processes[pod] = self._process(pod, "work", environment)
        code = await asyncio.get_running_loop().run_in_executor(None, process.wait)
        await self._pod(pod, {"metadata": {"labels": labels}, "spec": template["spec"]})
        message = word.read_text() if word.exists() else self.log(pod)[-1000:]
        state = {"terminated": {"exitCode": code, "message": message}}
        container = {"name": "work", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
        phase = "Failed" if code else "Succeeded"
        await self.lake.status(
            POD, pod, {"phase": phase, "containerStatuses": [{**container, "state": state}]}
        )
        return code

    async def _now(self) -> str:
        from lakehouse.control.conditions import timestamp

        return timestamp(self.lake.operator._runtime.now())

    # -------------------------------------------------------------- processes

    async def _environment(self, template: Body, extra: dict[str, str]) -> dict[str, str]:
        kube, namespace = self.lake.where.kube, self.lake.where.namespace
        (container,) = template["spec"]["containers"]
        found = {
            name: value for name, value in os.environ.items() if not name.startswith(("LAKEHOUSE_", "AWS_"))
        }
        for one in container.get("envFrom", ()):
            secret = await kube.get(SECRET, namespace, one["secretRef"]["name"])
            assert secret is not None
            found |= {name: _plain(value) for name, value in secret["data"].items()}
        for one in container["env"]:
            reference = one.get("valueFrom", {}).get("secretKeyRef")
            if reference is None:
                found[one["name"]] = one["value"]
            else:
                secret = await kube.get(SECRET, namespace, reference["name"])
                assert secret is not None
                found[one["name"]] = _plain(secret["data"][reference["key"]])
        secrets = {
            one["name"]: one["secret"] for one in template["spec"].get("volumes", ()) if "secret" in one
        }
        for mount in container["volumeMounts"]:
            if mount["name"] in secrets:
                folder = await self._mounted(secrets[mount["name"]]["secretName"])
                found = {
                    name: value.replace(mount["mountPath"], str(folder), 1) for name, value in found.items()
                }
        scratch = self.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        return found | {"TMPDIR": str(scratch)} | extra

    async def _mounted(self, secret: str) -> Path:
        """A Secret as files, where this test may write."""
        body = await self.lake.where.kube.get(SECRET, self.lake.where.namespace, secret)
        assert body is not None
        folder = self.folder / f"secret-{secret}"
        folder.mkdir(exist_ok=True)
        for name, value in body["data"].items():
            (folder / name).write_text(_plain(value))
        return folder

    def _process(self, name: str, command: str, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "lakehouse", command],
                env=environment,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _kill(self, name: str) -> None:
        process = self.processes.pop(name)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        for name in list(self.processes):
            self._kill(name)


def _plain(value: str) -> str:
    return base64.b64decode(value).decode()


@contextlib.asynccontextmanager
async def pods(lake: Lake) -> AsyncIterator[LittleKubelet]:
    """Somebody who runs pods, until the end of the `with`."""
    with tempfile.TemporaryDirectory(prefix="little-kubelet-") as folder:
        kubelet = LittleKubelet(lake, Path(folder))
        task = asyncio.ensure_future(kubelet.run())
        try:
            yield kubelet
        finally:
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            kubelet.close()
        if isinstance(result, Exception):
            raise result
