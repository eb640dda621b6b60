"""The processes of the engines, seen from outside: started with their environment, asked, ended."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lilliput.peers.table import Engine, Job

SECONDS_TO_ANSWER = 1200.0  # the longest that a conversion may take
SECONDS_TO_END = 5.0
STARTS, STARTS_SECONDS = 5, 8.0  # fresh processes an engine, fewer where one takes long


class EngineError(Exception):
    """An engine cannot run here; the message is the reason, one line."""


def environment(engine: Engine, job: Job) -> dict[str, str]:
    """What the process gets: as many threads as asked for, the restriction to an instruction set where there is one."""
    extra = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(job.threads))
    extra |= {"CI": "true", "NNCF_CI": "1"}  # OpenVINO and NNCF report their use to their makers unless in CI
    extra |= {"PYTHONWARNINGS": "ignore"}  # the log's last line is to say why a process died
    if job.isa == "avx2" and engine.avx2 is not None:
        extra |= engine.avx2
    return os.environ | extra


class EngineProcess:
    """One engine at work. `log` takes what it prints."""

    def __init__(self, engine: Engine, job: Job, log: Path) -> None:
        self._log, self._unread = log, b""
        command = [sys.executable, "-m", "lilliput.peers.worker", json.dumps(asdict(job))]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(engine, job),
                bufsize=0,
            )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One request and its reply.

        Raises:
            EngineError: the engine failed, its process ended, or it took too long.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        except BrokenPipeError:
            raise EngineError(self._ended()) from None
        reply: dict[str, Any] = json.loads(self._line(time.monotonic() + SECONDS_TO_ANSWER))
        if "error" in reply:
            raise EngineError(reply["error"])
        return reply

    def close(self) -> None:
        """End the process; it has no work worth finishing."""
        self._process.kill()
        self._process.communicate()

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise EngineError(f"gave no answer in {SECONDS_TO_ANSWER:.0f} seconds")
            received = os.read(self._process.stdout.fileno(), 1 << 16)
            if not received:
                raise EngineError(self._ended())
            self._unread += received
        line, self._unread = self._unread.split(b"\n", maxsplit=1)
        return line

    def _ended(self) -> str:
        try:
            code = self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            return "its process closed its output"
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        lines = self._log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"its process ended with {how}: {last[:200]}"


@contextmanager
def process(engine: Engine, job: Job, log: Path) -> Iterator[EngineProcess]:
    running = EngineProcess(engine, job, log)
    try:
        yield running
    finally:
        running.close()


def start(engine: Engine, job: Job, log: Path, built: dict[str, Any]) -> tuple[EngineProcess, list[dict[str, Any]]]:
    """Start an engine in several fresh processes, one after the other; the last one stays.

    Returns:
        It, and what each start took.

    Raises:
        EngineError: it does not start.
    """
    starts: list[dict[str, Any]] = []
    began = time.monotonic()
    while True:
        running = EngineProcess(engine, job, log)
        try:
            starts.append(running.ask("start", files=built["files"], settings=built["settings"]))
        except BaseException:
            running.close()
            raise
        if len(starts) == STARTS or time.monotonic() - began > STARTS_SECONDS:
            return running, starts
        running.close()
