"""The static buffer plan: when each buffer is alive, and where it lies in the arena (docs/format.md, "Buffers")."""

from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from lilliput.program.formats import round_up

ALIGNMENT = 64
TOKEN_ALIGNMENT = 4  # of bytes a token
TOKENS_STEP = 16  # the arena holds a multiple of so many tokens


class Lifetime(NamedTuple):
    """First and last op, both included, during which a buffer is alive."""

    first: int
    last: int


class _Op(Protocol):
    @property
    def inputs(self) -> tuple[int, ...]: ...
    @property
    def outputs(self) -> tuple[int, ...]: ...


def lifetimes(ops: Sequence[_Op]) -> dict[int, Lifetime]:
    """From the op that writes a buffer to the last that reads it. Buffers that no op writes (the input) are absent."""
    alive: dict[int, Lifetime] = {}
    for index, op in enumerate(ops):
        for buffer in op.outputs:
            alive[buffer] = Lifetime(index, index)
        for buffer in op.inputs:
            if buffer in alive:
                alive[buffer] = Lifetime(alive[buffer].first, index)
    return alive


def plan_arena(
    sizes: dict[int, int], alive: dict[int, Lifetime], alignment: int = ALIGNMENT
) -> tuple[dict[int, int], int]:
    """Greedy best fit, largest first: each buffer takes the smallest gap that fits between those alive with it.

    Args:
        sizes: bytes of each arena buffer.
        alive: lifetimes of at least these buffers.
        alignment: of the offsets.

    Returns:
        offset of each buffer, and the arena's bytes.
    """
    offsets: dict[int, int] = {}
    placed: list[tuple[int, int, int]] = []  # (offset, end, buffer), sorted
    arena = 0
    for buffer in sorted(sizes, key=lambda index: (-sizes[index], index)):
        first, last = alive[buffer]
        together = [
            (start, end) for start, end, other in placed if alive[other].first <= last and first <= alive[other].last
        ]
        size = round_up(sizes[buffer], alignment)
        offsets[buffer] = _best_gap(together, size)
        insort(placed, (offsets[buffer], offsets[buffer] + size, buffer))
        arena = max(arena, offsets[buffer] + size)
    return offsets, arena


def _best_gap(taken: list[tuple[int, int]], size: int) -> int:
    """Start of the smallest gap of at least `size` bytes; `taken` is sorted and may overlap itself; the end is open."""
    best: tuple[int, int] | None = None  # (gap, start)
    free = 0
    for start, end in taken:
        gap = start - free
        if gap >= size and (best is None or gap < best[0]):
            best = (gap, free)
        free = max(free, end)
    return best[1] if best is not None else free
