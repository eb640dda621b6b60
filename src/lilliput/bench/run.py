"""A model of images, measured in turns with other engines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.bench import turns
from lilliput.bench.turns import Progress
from lilliput.peers.table import Engine
from lilliput.runtime.images import ImageSession


@dataclass(frozen=True)
class Plan:
    """What to measure. Images are uint8 [n, height, width, channels]; `seconds` of timed calls an engine."""

    model: Path
    engines: tuple[Engine, ...]
    images: NDArray[np.uint8]
    calibration: NDArray[np.uint8]
    batch: int = 1
    threads: int = 1
    isa: str | None = None
    seconds: float = 2.0


def describe(session: ImageSession, plan: Plan) -> dict[str, Any]:
    """As `turns.describe`, and the work memory of one image."""
    return turns.describe(session, plan.model) | {"arena_bytes": session.arena_bytes}


def measure(plan: Plan, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """As `turns.measure`.

    Raises:
        FailureError: Lilliput's own engine failed.
    """
    settings = turns.Plan(
        plan.model, plan.engines, plan.images, plan.calibration, plan.batch, plan.threads, plan.isa, plan.seconds
    )
    return turns.measure(settings, progress)
