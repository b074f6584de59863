"""hnswlib in a process of its own, asked over a pipe, so that its CPU and memory are its own.

`python -m lakehouse.cli.bench.peer VECTORS.npy QUERIES.npy` answers one JSON line per JSON line.
What it does not do: anything clever; it is the library as its README uses it.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

M, EF_CONSTRUCTION = 16, 200
BATCH = 32
CHUNK_ROWS = 10_000


class Peer:
    """The other end of the pipe."""

    def __init__(self, vectors: Path, queries: Path) -> None:
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lakehouse.cli.bench.peer", str(vectors), str(queries)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **single},
            text=True,
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        """One question, one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


def cpu_s() -> float:
    """CPU seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Library:
    """What the questions are about."""

    def __init__(self, vectors: str, queries: str) -> None:
        import hnswlib
        import numpy as np

        from lakehouse.cli.process import anonymous_bytes

        self._np = np
        self._vectors = np.load(vectors, mmap_mode="r")  # in a file, as the server's originals may be
        self._queries = np.load(queries)
        self._index = hnswlib.Index("cosine", self._vectors.shape[1])
        self._anonymous_bytes = anonymous_bytes

    def build(self, threads: int) -> dict[str, Any]:
        """Insert all rows; how long, and how much anonymous memory grew."""
        before, cpu = self._anonymous_bytes(), cpu_s()
        self._index.init_index(len(self._vectors), M=M, ef_construction=EF_CONSTRUCTION, random_seed=100)
        for start in range(0, len(self._vectors), CHUNK_ROWS):
            rows = self._np.array(self._vectors[start : start + CHUNK_ROWS])
            labels = self._np.arange(start, start + len(rows))
            self._index.add_items(rows, labels, num_threads=threads)
        del rows
        return {"cpu_s": cpu_s() - cpu, "growth_bytes": self._anonymous_bytes() - before}

    def search(self, ef: int, batch: int, k: int) -> dict[str, Any]:
        """Every query once, `batch` at a time, on one thread."""
        self._index.set_ef(ef)
        found: list[list[int]] = []
        cpu = cpu_s()
        for start in range(0, len(self._queries), batch):
            labels, _ = self._index.knn_query(self._queries[start : start + batch], k=k, num_threads=1)
            found += labels.tolist()
        return {"cpu_s": cpu_s() - cpu, "found": found}

    def scan(self, mask: str, k: int, queries: int) -> dict[str, Any]:
        """Some queries against every row exactly, one at a time, keeping those that the mask allows."""
        np = self._np
        outside = ~np.load(mask)
        rows = np.array(self._vectors)
        cpu = cpu_s()
        for query in self._queries[:queries]:
            near = -(rows @ query)
            near[outside] = np.inf
            first = np.argpartition(near, k - 1)[:k]
            first[np.argsort(near[first])]
        return {"cpu_s": cpu_s() - cpu, "queries": len(self._queries[:queries])}


def main() -> None:
    """Answer until the pipe closes."""
    library = Library(*sys.argv[1:3])
    for line in sys.stdin:
        question = json.loads(line)
        answer = getattr(library, question.pop("do"))(**question)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
