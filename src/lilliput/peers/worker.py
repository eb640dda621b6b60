"""The process of one engine: `python -m lilliput.peers.worker JOB`, one JSON request a line in, one reply a line out.

Requests: `build` (make the engine's file), `start` (open it, first result, memory), `time` (a chunk of timed calls),
`outputs` (of every input). A process that builds is not one that is measured: converters leave memory behind.
Lilliput's own engine is one of them, so all are measured by the same code.
"""

import gc
import importlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike

import lilliput  # the bare interpreter, of the memory figures, has numpy and lilliput
from lilliput.peers.inputs import Inputs, batch_of, load
from lilliput.peers.table import Built, Job

Call = Callable[[], ArrayLike]  # the outputs of a batch that was prepared before, [batch, outputs]
Prepare = Callable[[Inputs], Call]  # of a batch

SMAPS = Path("/proc/self/smaps_rollup")
CALLS_BEFORE_MEMORY = 8
LEAST_CALLS = 3
WARM_UP = 0.2  # of a chunk's time: another engine had the caches before
PREPARED = 4  # different inputs, in turn
BUILT_BY_HAND = ("gguf", "llama_cpp")  # there are no binaries, and a compiler is busy with them for ten minutes
MOST_REASON = 300  # characters of an error


def memory() -> dict[str, int] | None:
    """Resident bytes of this process: all (`rss`), and with shared pages divided among their users (`pss`)."""
    try:
        text = SMAPS.read_text(encoding="ascii")
    except OSError:
        return None  # only Linux tells
    return {key.lower(): 1024 * int(value) for key, value in re.findall(r"^(Rss|Pss): +(\d+) kB", text, re.MULTILINE)}


def measure_calls(calls: list[Call], seconds: float) -> tuple[list[int], float]:
    """Nanoseconds of each call for `seconds`, after warming up; and the processor time per second of wall time."""
    gc.collect()
    gc.disable()
    try:
        _repeat(calls, seconds * WARM_UP)
        busy, wall = time.process_time(), time.perf_counter()
        durations = _repeat(calls, seconds * (1 - WARM_UP))
        return durations, (time.process_time() - busy) / (time.perf_counter() - wall)
    finally:
        gc.enable()


def _repeat(calls: list[Call], seconds: float) -> list[int]:
    durations: list[int] = []
    clock = time.perf_counter_ns
    end = clock() + int(seconds * 1e9)
    while len(durations) < LEAST_CALLS or clock() < end:
        call = calls[len(durations) % len(calls)]
        start = clock()
        call()
        durations.append(clock() - start)
    return durations


class Worker:
    """Holds what one request leaves for the next."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.inputs = load(job.inputs)
        self.prepare: Prepare | None = None
        self.calls: list[Call] = []

    def build(self) -> dict[str, Any]:
        Path(self.job.folder).mkdir(parents=True, exist_ok=True)
        built: Built = self._family().build(self.job)
        return asdict(built) | {"file_bytes": sum(os.path.getsize(file) for file in built.files) or None}

    def start(self, files: list[str], settings: dict[str, Any] | None) -> dict[str, Any]:
        first = self._batch(0)
        bare = memory()
        began = time.perf_counter()
        family = self._family()
        imported = time.perf_counter()
        after_import = memory()
        opening = time.perf_counter()
        self.prepare = family.open_engine(self.job, Built(tuple(files), settings))
        opened = time.perf_counter()
        call = self.prepare(first)
        outputs = np.asarray(call())
        done = time.perf_counter()
        assert outputs.shape[0] == self.job.batch, outputs.shape
        for _ in range(CALLS_BEFORE_MEMORY):
            call()
        after = memory()
        self.calls = [call, *(self.prepare(self._batch(index * self.job.batch)) for index in range(1, PREPARED))]
        return {
            "version": family.version(),
            "import_ms": 1e3 * (imported - began),
            "open_ms": 1e3 * (opened - opening),
            "first_result_ms": 1e3 * (done - opening),
            "memory": _memory_figures(bare, after_import, after),
            **(family.facts() if hasattr(family, "facts") else {}),
        }

    def time(self, seconds: float) -> dict[str, Any]:
        durations, busy = measure_calls(self.calls, seconds)
        return {"nanoseconds": durations, "processors_busy": busy}

    def outputs(self) -> dict[str, Any]:
        """The file with what the engine makes of all inputs, float32 [n, outputs]."""
        assert self.prepare is not None, "started before"
        batches = [
            np.asarray(self.prepare(self._batch(at))()).copy() for at in range(0, len(self.inputs), self.job.batch)
        ]
        path = f"{self.job.folder}/outputs.npy"
        np.save(path, np.concatenate(batches)[: len(self.inputs)].astype(np.float32, copy=False))
        return {"path": path}

    def _family(self) -> ModuleType:
        return importlib.import_module(f"lilliput.peers.{self.job.family}")

    def _batch(self, start: int) -> Inputs:
        return batch_of(self.inputs, start, self.job.batch)


def _memory_figures(
    bare: dict[str, int] | None, imported: dict[str, int] | None, after: dict[str, int] | None
) -> dict[str, int] | None:
    if bare is None or imported is None or after is None:
        return None
    return {
        "rss_bytes": after["rss"] - bare["rss"],
        "pss_bytes": after["pss"] - bare["pss"],
        "of_import_rss_bytes": imported["rss"] - bare["rss"],
        "process_rss_bytes": after["rss"],
    }


def explain(error: BaseException) -> str:
    """One line: what is missing, or the kind of the error and what it says."""
    if isinstance(error, ModuleNotFoundError):
        how = "benchmarks/README.md says how" if error.name in BUILT_BY_HAND else "pip install 'lilliput[peers]'"
        return f"the package '{error.name}' is not installed ({how})"
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text if len(text) <= MOST_REASON else text[:MOST_REASON] + '...'}"


def serve(worker: Worker, requests: IO[str], replies: IO[str]) -> None:
    """Answer until the requests end. An error is an answer too: `{"error": one line}`."""
    for line in requests:
        request = json.loads(line)
        do = request.pop("do")
        try:
            reply = getattr(worker, do)(**request)
        except Exception as error:
            traceback.print_exc()  # to the log
            reply = {"error": explain(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def main() -> None:
    # Engines print what they like: that goes to the log with stderr, and the replies to where stdout was.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(Worker(Job(**json.loads(sys.argv[1]))), sys.stdin, replies)


if __name__ == "__main__":
    assert lilliput.__version__
    main()
