"""One interleaved run: every engine in its own process, in turns, a chunk of calls each; then medians and ratios."""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lilliput
from lilliput.bench.engines import EngineError, EngineProcess, process, start
from lilliput.errors import FailureError
from lilliput.measure import commit, cosines, machine_info
from lilliput.peers.inputs import Inputs, save
from lilliput.peers.table import OURS, Engine, Job
from lilliput.runtime.session import Session

ROUNDS = 20
REFERENCE = "PyTorch eager fp32"  # whose outputs the others are compared with
PAUSE = 0.005  # seconds between engines: threads that spin after their work must not take the next one's time

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """What to measure: images uint8 [n, height, width, channels] or sequences of token ids; `seconds` of timed calls an
    engine; `vectors`: what comes out are vectors, not logits; `checkpoint` as for `Job`."""

    model: Path
    engines: tuple[Engine, ...]
    inputs: Inputs
    calibration: Inputs
    batch: int = 1
    threads: int = 1
    isa: str | None = None
    seconds: float = 2.0
    vectors: bool = False
    checkpoint: Path | None = None

    @property
    def unit(self) -> str:
        """What is counted, for the names of figures."""
        return "images" if isinstance(self.inputs, np.ndarray) else "texts"


@dataclass
class Row:
    """What is known of one engine."""

    engine: Engine
    job: Job
    log: Path
    reason: str | None = None  # why it cannot run
    built: dict[str, Any] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    process: EngineProcess | None = None
    outputs: NDArray[np.float32] | None = None
    rounds: list[list[int]] = field(default_factory=list)  # nanoseconds of each call
    busy: list[float] = field(default_factory=list)


def describe(session: Session, model: Path) -> dict[str, Any]:
    """What is measured, and where: the file, the instruction set in use, the machine, the version and the commit."""
    return {
        "file": str(model),
        "file_bytes": session.file_bytes,
        "isa": session.isa,
        "lilliput": lilliput.__version__,
        "commit": commit(),
        "machine": machine_info(),
    }


def measure(plan: Plan, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Build, start and time all engines of the plan, Lilliput first; `progress(done, total)` counts steps.

    Returns:
        Plain values for JSON; see `document`.

    Raises:
        FailureError: Lilliput's own engine failed. (A peer that fails is a row with its reason.)
    """
    engines = (OURS, *plan.engines)
    done, total = 0, len(engines) * 3 + ROUNDS

    def step() -> None:
        nonlocal done
        done += 1
        progress(min(done, total), total)

    with tempfile.TemporaryDirectory(prefix="lilliput-bench-") as folder, ExitStack() as stack:
        rows = _rows(plan, engines, Path(folder))
        for row in rows:
            _attempt(row, _build)
            step()
        for row in rows:
            _attempt(row, lambda each: _start(each, stack))
            step()
        for row in rows:
            _attempt(row, lambda each: _run_all(each, rows[0]))
            step()
        load = os.getloadavg()[0]
        for number in range(ROUNDS):
            for row in rows[number % len(rows) :] + rows[: number % len(rows)]:
                _attempt(row, lambda each: _time(each, plan.seconds / ROUNDS))
            step()
    return document(plan, rows) | {"load_before": round(load, 2)}


def _rows(plan: Plan, engines: tuple[Engine, ...], folder: Path) -> list[Row]:
    inputs, calibration = save(plan.inputs, str(folder / "inputs")), save(plan.calibration, str(folder / "calibration"))
    rows = []
    for number, engine in enumerate(engines):
        job = Job(
            family=engine.family,
            variant=engine.variant,
            model=str(plan.model.resolve()),
            folder=str(folder / str(number)),
            inputs=inputs,
            calibration=calibration,
            batch=plan.batch,
            threads=plan.threads,
            isa=plan.isa,
            checkpoint=None if plan.checkpoint is None else str(plan.checkpoint.resolve()),
        )
        rows.append(Row(engine, job, folder / f"{number}.log"))
    return rows


def _attempt(row: Row, work: Callable[[Row], None]) -> None:
    """Do `work` if nothing failed before. Without our own engine there is nothing to compare."""
    if row.reason is not None:
        return
    try:
        work(row)
    except EngineError as error:
        if row.engine is OURS:
            raise FailureError(f"{row.job.model}: {error}") from None
        row.reason = str(error)
        if row.process is not None:
            row.process.close()


def _build(row: Row) -> None:
    with process(row.engine, row.job, row.log) as builder:
        row.built = builder.ask("build")


def _start(row: Row, stack: ExitStack) -> None:
    row.process, row.starts = start(row.engine, row.job, row.log, row.built)
    stack.callback(row.process.close)


def _run_all(row: Row, ours: Row) -> None:
    assert row.process is not None
    outputs: NDArray[np.float32] = np.load(row.process.ask("outputs")["path"])
    if ours.outputs is not None and outputs.shape != ours.outputs.shape:
        sizes = f"gives {outputs.shape[1]} outputs, the file {ours.outputs.shape[1]}"
        raise EngineError(f"{sizes}: the checkpoint is of another model")
    row.outputs = outputs


def _time(row: Row, seconds: float) -> None:
    assert row.process is not None
    chunk = row.process.ask("time", seconds=seconds)
    row.rounds.append(chunk["nanoseconds"])
    row.busy.append(chunk["processors_busy"])
    time.sleep(PAUSE)


def document(plan: Plan, rows: list[Row]) -> dict[str, Any]:
    """The results: latencies of a call with a whole batch, ratios against the fastest peer, and one entry an engine."""
    reference = next((row.outputs for row in rows if row.engine.name == REFERENCE), None)
    entries = [_entry(plan, row, reference) for row in rows]
    ours = entries[0]
    peers = {entry["name"]: entry["latency_us"] for entry in entries[1:]}
    running = {name: latency for name, latency in peers.items() if latency is not None}
    fastest = min(running, key=lambda name: running[name]) if running else None
    summary: dict[str, Any] = {
        "threads": plan.threads,
        "batch": plan.batch,
        **{key: ours[key] for key in ("latency_us", "latency_p5_us", "latency_p95_us", f"{plan.unit}_per_second")},
        "cold_start_ms": ours["first_result_ms"],
        "memory": ours["memory"],
        "peers": peers,
        "fastest_peer": fastest,
        "ratio_to_fastest_peer": None if fastest is None else running[fastest] / ours["latency_us"],
        "ratio_by_round": None if fastest is None else _ratio_by_round(rows, fastest),
        "seconds_an_engine": plan.seconds,
        "rounds": ROUNDS,
        f"{plan.unit}_compared": len(plan.inputs),
        "engines": entries,
    }
    return summary


def _entry(plan: Plan, row: Row, reference: NDArray[np.float32] | None) -> dict[str, Any]:
    """An engine's results; all null but its name and the reason where it cannot run."""
    entry: dict[str, Any] = {
        "name": row.engine.name,
        "reason": row.reason,
        "version": None,
        "file_bytes": row.built.get("file_bytes"),
        "restricted": _restricted(plan, row.engine),
        "note": row.built.get("note", ""),
    }
    alike = "cosine" if plan.vectors else "agreement"
    numbers = "latency_us latency_p5_us latency_p95_us processors_busy first_result_ms open_ms import_ms memory"
    entry |= dict.fromkeys((*numbers.split(), f"{plan.unit}_per_second", alike))
    if row.reason is not None:
        return entry
    microseconds = np.concatenate(row.rounds) / 1e3
    low, middle, high = (float(value) for value in np.percentile(microseconds, (5, 50, 95)))
    entry |= {"latency_us": middle, "latency_p5_us": low, "latency_p95_us": high, "calls": len(microseconds)}
    entry |= {f"{plan.unit}_per_second": plan.batch * 1e6 / middle, "processors_busy": float(np.median(row.busy))}
    if reference is not None and row.outputs is not None:
        same = cosines if plan.vectors else _same_class
        entry[alike] = float(same(row.outputs, reference).mean())
    for key in ("import_ms", "open_ms", "first_result_ms"):
        entry[key] = float(np.median([each[key] for each in row.starts]))
    known = [each["memory"] for each in row.starts if each["memory"] is not None]
    if known:
        entry["memory"] = {key: int(np.median([each[key] for each in known])) for key in known[0]}
    extra = {key: value for key, value in row.starts[-1].items() if key not in entry}
    return entry | {"version": row.starts[-1]["version"], "starts": len(row.starts), **extra}


def _same_class(outputs: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = outputs.argmax(axis=1) == reference.argmax(axis=1)
    return same


def _restricted(plan: Plan, engine: Engine) -> bool | None:
    """Whether a peer was kept to the instruction set that was forced; None where none was, or for our own engine."""
    if plan.isa is None or engine is OURS:
        return None
    return plan.isa == "avx2" and engine.avx2 is not None


def _ratio_by_round(rows: list[Row], fastest: str) -> dict[str, float]:
    """The ratio within each round: its spread says how far the machine's noise reaches."""
    peer = next(row for row in rows if row.engine.name == fastest)
    ratios = [np.median(theirs) / np.median(ours) for theirs, ours in zip(peer.rounds, rows[0].rounds, strict=True)]
    low, middle, high = (float(value) for value in np.percentile(ratios, (5, 50, 95)))
    return {"p5": low, "median": middle, "p95": high}
