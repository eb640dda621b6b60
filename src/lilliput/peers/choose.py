"""Giving a peer its best: of several ways to use it, the quickest here is taken, and the note says what was tried."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lilliput.peers.inputs import Part, batch_of, load
from lilliput.peers.table import Built, Job
from lilliput.peers.worker import Call, Prepare, explain, measure_calls

ROUNDS, ROUND_SECONDS = 5, 0.1
HOPELESS = 2.0  # times the quickest in the first round: not timed again


def build_quickest(
    job: Job, ways: Mapping[str, Callable[[], Built]], open_engine: Callable[[Job, Built], Prepare]
) -> Built:
    """Build, open and time each way on the job's first batch; gives what the quickest made, with the note.

    Raises:
        RuntimeError: every way failed.
    """
    batch = batch_of(load(job.inputs), 0, job.batch)
    made: dict[str, Built] = {}

    def opened(name: str) -> Call:
        made[name] = ways[name]()
        return open_engine(job, made[name])(batch)

    best, note = quickest({name: partial(opened, name) for name in ways})
    return replace(made[best], note=note)


def quickest(ways: Mapping[str, Callable[[], Call]]) -> tuple[str, str]:
    """Time each way's call in turns; gives the name of the quickest and a note. A way that fails is noted.

    Raises:
        RuntimeError: every way failed.
    """
    calls: dict[str, Call] = {}
    failed: dict[str, str] = {}
    for name, way in ways.items():
        try:
            calls[name] = way()
            calls[name]()
        except Exception as error:
            calls.pop(name, None)
            failed[name] = explain(error)
    if not calls:
        raise RuntimeError("; ".join(f"{name}: {why}" for name, why in failed.items()))
    if len(ways) == 1:
        return next(iter(calls)), next(iter(calls))
    samples: dict[str, list[int]] = {name: [] for name in calls}
    medians: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            samples[name] += measure_calls([call], ROUND_SECONDS)[0]
            medians[name] = float(np.median(samples[name])) / 1e3
        calls = {name: call for name, call in calls.items() if medians[name] <= HOPELESS * min(medians.values())}
    best = min(medians, key=medians.__getitem__)
    tried = [f"{name} {medians[name]:.0f} us" for name in medians]
    tried += [
        f"{', '.join(name for name in failed if failed[name] == why)} ({why})" for why in dict.fromkeys(failed.values())
    ]
    return best, f"{best}; tried: {', '.join(tried)}"


def in_parts(parts: list[Part], calls: Sequence[Call], requests: int) -> Call:
    """One call of a batch from the calls of its parts: one after another, or by `requests` threads that take them in
    turns; outputs in the order of the batch."""
    if len(parts) == 1:
        return calls[0]
    pool = ThreadPoolExecutor(requests) if requests > 1 else None

    def call() -> NDArray[np.float32]:
        return in_order(parts, pool.map(_called, calls) if pool else map(_called, calls))

    return call


def in_order(parts: list[Part], outputs: Iterable[ArrayLike]) -> NDArray[np.float32]:
    """The outputs of the parts as those of the batch, [batch, outputs]."""
    made = [np.asarray(each) for each in outputs]
    batch = np.empty((sum(len(part.rows) for part in parts), made[0].shape[1]), np.float32)
    for part, each in zip(parts, made, strict=True):
        batch[part.rows] = each
    return batch


def _called(call: Call) -> ArrayLike:
    return call()
