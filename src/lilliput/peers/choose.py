"""Giving a peer its best: of several ways to use it, the quickest here is taken, and the note says what was tried."""

from collections.abc import Callable

import numpy as np

from lilliput.peers.worker import Call, explain, measure_calls

ROUNDS, ROUND_SECONDS = 5, 0.1


def quickest(ways: dict[str, Callable[[], Call]]) -> tuple[str, str]:
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
    samples: dict[str, list[int]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            samples[name] += measure_calls([call], ROUND_SECONDS)[0]
    medians = {name: float(np.median(values)) / 1e3 for name, values in samples.items()}
    best = min(medians, key=medians.__getitem__)
    tried = [f"{name} {medians[name]:.0f} us" for name in medians] + [f"{name} ({why})" for name, why in failed.items()]
    return best, f"{best}; tried: {', '.join(tried)}" if len(tried) > 1 else best
