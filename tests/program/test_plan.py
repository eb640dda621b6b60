"""The buffer plan: lifetimes, and offsets that never let two live buffers overlap."""

from hypothesis import given
from hypothesis import strategies as st

from lilliput.program.formats import round_up
from lilliput.program.plan import Lifetime, lifetimes, plan_arena
from lilliput.program.program import Op

Problem = tuple[dict[int, int], dict[int, Lifetime]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Sizes and lifetimes of up to 24 buffers over up to 12 ops."""
    sizes, alive = {}, {}
    for buffer in range(draw(st.integers(1, 24))):
        first = draw(st.integers(0, 11))
        sizes[buffer] = draw(st.integers(1, 1000))
        alive[buffer] = Lifetime(first, draw(st.integers(first, 11)))
    return sizes, alive


def together(alive: dict[int, Lifetime], a: int, b: int) -> bool:
    return any(alive[a].first <= op <= alive[a].last and alive[b].first <= op <= alive[b].last for op in range(12))


@given(problems())
def test_live_buffers_never_overlap(problem: Problem) -> None:
    sizes, alive = problem
    offsets, arena = plan_arena(sizes, alive)
    assert offsets.keys() == sizes.keys()
    for a in sizes:
        assert offsets[a] % 64 == 0
        assert 0 <= offsets[a] <= arena - sizes[a]
        for b in sizes:
            if a < b and together(alive, a, b):
                assert offsets[a] + sizes[a] <= offsets[b] or offsets[b] + sizes[b] <= offsets[a]


@given(problems())
def test_arena_is_between_the_largest_live_set_and_the_sum(problem: Problem) -> None:
    sizes, alive = problem
    _, arena = plan_arena(sizes, alive)
    aligned = {buffer: round_up(size, 64) for buffer, size in sizes.items()}
    live_sets = (
        sum(size for buffer, size in aligned.items() if alive[buffer].first <= op <= alive[buffer].last)
        for op in range(12)
    )
    assert max(live_sets) <= arena <= sum(aligned.values())


@given(problems())
def test_plan_is_deterministic_and_ends_where_a_buffer_ends(problem: Problem) -> None:
    sizes, alive = problem
    offsets, arena = plan_arena(sizes, alive)
    assert (offsets, arena) == plan_arena(dict(reversed(sizes.items())), alive)
    assert arena == max(round_up(offsets[buffer] + sizes[buffer], 64) for buffer in sizes)


def test_a_chain_takes_the_room_of_two_neighbours() -> None:
    sizes = {1: 640, 2: 640, 3: 640, 4: 640}
    alive = {buffer: Lifetime(buffer - 1, buffer) for buffer in sizes}
    assert plan_arena(sizes, alive)[1] == 1280


def test_smallest_gap_that_fits_is_taken() -> None:
    # 0 to 3 lie side by side; when 4 comes, 0 and 2 have left gaps of 1024 and 896.
    sizes = {0: 1024, 1: 960, 2: 896, 3: 832, 4: 640}
    alive = {0: Lifetime(0, 0), 1: Lifetime(0, 1), 2: Lifetime(0, 0), 3: Lifetime(0, 1), 4: Lifetime(1, 1)}
    offsets, arena = plan_arena(sizes, alive)
    assert [offsets[buffer] for buffer in range(4)] == [0, 1024, 1984, 2880]
    assert offsets[4] == 1984
    assert arena == 2880 + 832


def test_no_buffers_take_no_arena() -> None:
    assert plan_arena({}, {}) == ({}, 0)


def test_lifetimes_run_from_the_writer_to_the_last_reader() -> None:
    ops = [
        Op("normalize", inputs=(0,), outputs=(1,)),
        Op("quantize", inputs=(1,), outputs=(2, 3)),
        Op("linear_add", inputs=(2, 3, 1), outputs=(4,)),
        Op("mean_rows", inputs=(4,), outputs=(5,)),
    ]
    assert lifetimes(ops) == {1: (0, 2), 2: (1, 2), 3: (1, 2), 4: (2, 3), 5: (3, 3)}
