"""The float32 functions: stated bounds against float64, and the exact order of docs/format.md on single values."""

import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput.program import mathfn
from lilliput.program.mathfn import Float

ROOT = Path(__file__).parents[2]
Function = Callable[[Float], Float]
Exact = Callable[[Float], np.ndarray]
PIECEWISE = ("GELU", "GELU_TANH", "TANH")
PIECES = ("INV_STEP", "C3", "C2", "C1", "C0")
LINES = ("GELU_LINES", "GELU_TANH_LINES")


def exact_gelu(x: Float) -> np.ndarray:
    return np.array([value * 0.5 * math.erfc(-value / math.sqrt(2.0)) for value in x.astype(np.float64)])


def exact_gelu_tanh(x: Float) -> np.ndarray:
    wide = x.astype(np.float64)
    y: np.ndarray = wide / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    return y


def fit_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fit_polynomials", ROOT / "tools" / "fit_polynomials.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def all_floats_between(low: float, high: float, step: int) -> Float:
    """Every `step`-th float32 of one sign between two of its values."""
    first, last = sorted(int(np.float32(value).view(np.uint32)) for value in (low, high))
    return np.arange(first, last + 1, step, dtype=np.uint32).view(np.float32)


def test_exp2_is_within_its_bound() -> None:
    x = np.concatenate([np.linspace(-126, 0, 1_000_001).astype(np.float32), all_floats_between(-126.0, -1e-3, 131)])
    relative = np.abs(mathfn.exp2(x).astype(np.float64) / np.exp2(x.astype(np.float64)) - 1.0)
    assert relative.max() <= 1.1e-4


def test_exp2_of_special_values() -> None:
    lowest = 2.0**-126
    x = np.array([0.0, -0.0, -1.0, -126.0, -200.0, -np.inf, np.nan], np.float32)
    assert mathfn.exp2(x).tolist() == [1.0, 1.0, 0.5, lowest, lowest, lowest, lowest]


CUBIC_JOINTS, LINE_JOINTS = np.arange(33) / 32, (np.arange(32) + 0.5) / 8

# Function, what it is meant to be, stated bound, and where its pieces meet.
BOUNDED = pytest.mark.parametrize(
    ("function", "exact", "bound", "joints"),
    [
        (mathfn.gelu, exact_gelu, 2e-6, 5.5 * CUBIC_JOINTS),
        (mathfn.gelu_tanh, exact_gelu_tanh, 2e-6, 5.5 * CUBIC_JOINTS),
        (mathfn.tanh, lambda x: np.tanh(x.astype(np.float64)), 1e-5, 8.0 * CUBIC_JOINTS),
        (mathfn.coarse_gelu, exact_gelu, 8e-4, LINE_JOINTS),
        (mathfn.coarse_gelu_tanh, exact_gelu_tanh, 8e-4, LINE_JOINTS),
    ],
    ids=["gelu", "gelu_tanh", "tanh", "coarse_gelu", "coarse_gelu_tanh"],
)
COARSE = pytest.mark.parametrize("function", [mathfn.coarse_gelu, mathfn.coarse_gelu_tanh])


@BOUNDED
def test_activation_is_within_its_bound_everywhere(
    function: Function, exact: Exact, bound: float, joints: np.ndarray
) -> None:
    x = np.concatenate([np.linspace(-9, 9, 200_001), np.linspace(-200, 200, 2_001), [-3e38, 3e38, 1e-40]])
    x32 = x.astype(np.float32)
    with np.errstate(over="ignore"):
        assert np.abs(function(x32) - exact(x32)).max() <= bound


@BOUNDED
def test_activation_is_within_its_bound_at_the_joints_of_its_pieces(
    function: Function, exact: Exact, bound: float, joints: np.ndarray
) -> None:
    at = joints.astype(np.float32)
    x = np.concatenate([at, np.nextafter(at, np.float32(-9)), np.nextafter(at, np.float32(9))])
    assert np.abs(function(x) - exact(x)).max() <= bound
    assert np.abs(function(-x) - exact(-x)).max() <= bound


@pytest.mark.parametrize("function", [mathfn.gelu, mathfn.gelu_tanh])
def test_gelu_of_special_values(function: Function) -> None:
    y = function(np.array([0.0, -0.0, np.nan, np.inf, -np.inf], np.float32))
    assert y[:4].tolist() == [0.0, 0.0, 0.0, np.inf]
    assert -2e-6 <= y[4] <= 0


@COARSE
def test_coarse_gelu_of_special_values(function: Function) -> None:
    y = function(np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32))
    assert y[:3].tolist() == [0.0, 0.0, np.inf]
    assert y[3] == y[4], "NaN is taken for the end of the last line, and no part of it is positive"
    assert abs(y[3]) <= 8e-4


@COARSE
def test_coarse_gelu_goes_on_from_the_end_of_its_last_line(function: Function) -> None:
    end = mathfn.LINES_END
    assert end < 3.9375 and np.nextafter(end, np.float32(9)) == 3.9375
    assert np.rint(end * mathfn.LINES_STEPS) == 31, "there is no line after it"
    tail = end - function(np.array([end], np.float32))
    beyond = np.array([3.9375, 4.0, 17.0, 3e38], np.float32)
    np.testing.assert_array_equal(function(-beyond), np.broadcast_to(function(-beyond[:1]), 4))
    np.testing.assert_array_equal(function(beyond), beyond - tail)


@COARSE
def test_coarse_gelu_is_the_line_around_the_nearest_eighth(function: Function) -> None:
    """Ties between two lines go to the even one, as `rint` does."""
    name = {mathfn.coarse_gelu: "GELU_LINES", mathfn.coarse_gelu_tanh: "GELU_TANH_LINES"}[function]
    c1, c0 = (getattr(mathfn, f"{name}_C{i}") for i in (1, 0))
    for x, line in ((1.0, 8), (1.0625, 8), (1.1875, 10), (-1.1875, 10), (0.0625, 0), (0.3, 2), (-3.93, 31)):
        tail = c1[line] * np.float32(abs(x)) + c0[line]
        assert function(np.array([x], np.float32))[0] == np.float32(max(x, 0.0)) - tail, x


def test_tanh_of_special_values() -> None:
    y = mathfn.tanh(np.array([0.0, -0.0, np.nan, np.inf, -np.inf], np.float32))
    assert y[:3].tolist() == [0.0, 0.0, 0.0]
    assert not np.signbit(y[:3]).any()
    assert y[3] == -y[4] and 1 - 1e-5 <= y[3] <= 1


def test_tanh_is_odd() -> None:
    x = np.random.default_rng(0).uniform(0, 10, 10_000).astype(np.float32)
    np.testing.assert_array_equal(mathfn.tanh(-x), -mathfn.tanh(x))


def test_relu() -> None:
    y = mathfn.relu(np.array([-1.0, -0.0, 0.0, 2.0, np.nan, np.inf], np.float32))
    assert y.tolist() == [0.0, 0.0, 0.0, 2.0, 0.0, np.inf]
    assert not np.signbit(y).any()


def c_literals(text: str) -> list[float]:
    return [float.fromhex(word) for word in re.findall(r"(-?0x[0-9a-f.]+p[+-]\d+)f", text)]


def test_constants_are_those_of_the_tool_and_of_the_c_header() -> None:
    header = (ROOT / "src" / "lilliput" / "runtime" / "c" / "lil_tables.h").read_text(encoding="utf-8")
    fitted = fit_tool().constants()
    of_lines = (f"{name}_{slope}" for name in LINES for slope in ("C1", "C0"))
    assert tuple(fitted) == ("EXP2_C", *(f"{name}_{piece}" for name in PIECEWISE for piece in PIECES), *of_lines)
    for name, wanted in fitted.items():
        python = np.atleast_1d(getattr(mathfn, name))
        assert python.dtype == np.float32
        np.testing.assert_array_equal(python, wanted, err_msg=name)
    exponential = re.search(r"LIL_EXP2_C\[4\] = ([^;]*);", header)
    assert exponential is not None
    assert c_literals(exponential[1]) == mathfn.EXP2_C.tolist()
    for name in PIECEWISE:
        body = re.search(rf"lil_cubics LIL_{name} = \{{(.*?)\n\}};", header, re.DOTALL)
        assert body is not None
        columns = [np.atleast_1d(getattr(mathfn, f"{name}_{piece}")) for piece in PIECES]
        by_piece = np.stack(columns[1:], axis=1)
        assert c_literals(body[1]) == [*np.concatenate(columns).tolist(), *by_piece.ravel().tolist()]
    for name in LINES:
        body = re.search(rf"lil_lines LIL_{name} = \{{(.*?)\n\}};", header, re.DOTALL)
        assert body is not None
        c1, c0 = (getattr(mathfn, f"{name}_{slope}") for slope in ("C1", "C0"))
        assert len(c1) == len(c0) == 32 and c0[0] == 0
        assert c_literals(body[1]) == [*c1.tolist(), *c0.tolist()]
    defined = dict(re.findall(r"#define LIL_LINES_(STEPS|END) (\S+)f", header))
    assert float(defined["STEPS"]) == mathfn.LINES_STEPS
    assert float.fromhex(defined["END"]) == mathfn.LINES_END


def test_weights_are_those_of_the_page_and_of_c() -> None:
    wanted = [round(127 * 2.0 ** (-t / 32)) for t in range(255)] + [0]
    assert mathfn.WEIGHTS.dtype == np.int8
    assert mathfn.WEIGHTS.tolist() == wanted
    source = (ROOT / "src" / "lilliput" / "runtime" / "c" / "op_table_attention.c").read_text(encoding="utf-8")
    body = re.search(r"lil_weights\[256 \+ 3\] = \{([^}]*)\}", source)
    assert body is not None
    assert [int(word) for word in re.findall(r"\d+", body[1])] == wanted


def test_fitted_header_is_the_one_in_the_tree() -> None:
    header = (ROOT / "src" / "lilliput" / "runtime" / "c" / "lil_tables.h").read_text(encoding="utf-8")
    assert fit_tool().c_text() == header


def lanes(values: list[np.float32]) -> np.float32:
    lane = [np.float32(0)] * 16
    for i, value in enumerate(values):
        lane[i % 16] = lane[i % 16] + value
    for width in (8, 4, 2):
        for j in range(width):
            lane[j] = lane[j] + lane[j + width]
    return np.float32(lane[0] + lane[1])


@given(st.lists(st.floats(width=32), min_size=1, max_size=70))
def test_lane_sum_adds_in_the_order_of_the_page(values: list[float]) -> None:
    x = np.array(values, np.float32)
    with np.errstate(all="ignore"):
        wanted = lanes(list(x))
    np.testing.assert_array_equal(mathfn.lane_sum(x), wanted)


def test_lane_sum_is_neither_pairwise_nor_left_to_right() -> None:
    x = np.array([2.0**24, *[0.0] * 7, 1.0, *[0.0] * 7, 1.0, *[0.0] * 7, 1.0], np.float32)
    assert mathfn.lane_sum(x) == 2.0**24 + 2.0, "lane 8 collects its two ones first"


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_maxima_follow_the_page(values: list[float]) -> None:
    x = np.array(values, np.float32)
    from_zero, from_first = np.float32(0), x[0]
    for value in x:
        from_zero = value if value > from_zero else from_zero
        from_first = value if value > from_first else from_first
    assert mathfn.max_from_zero(x) == from_zero
    np.testing.assert_array_equal(mathfn.max_from_first(x), from_first)


def test_clamp_sends_nan_to_the_lower_end() -> None:
    x = np.array([np.nan, -5.0, 0.5, 5.0, np.inf, -np.inf], np.float32)
    assert mathfn.clamp(x, np.float32(-1), np.float32(1)).tolist() == [-1.0, -1.0, 0.5, 1.0, 1.0, -1.0]


def test_quantize_rows_rounds_half_to_even() -> None:
    levels, scale = mathfn.quantize_rows(np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0]], np.float32))
    assert levels.tolist() == [[127, 0, 2, 2, 0, -2, -2, -127]]
    assert scale.tolist() == [[1.0]]


@pytest.mark.parametrize("magnitude", [0.0, 1e-45, 9.9e-31, np.nan])
def test_rows_without_magnitude_are_zero(magnitude: float) -> None:
    levels, scale = mathfn.quantize_rows(np.array([[magnitude, -magnitude]], np.float32))
    assert levels.tolist() == [[0, 0]]
    assert scale.tolist() == [[0.0]]


def test_one_scale_for_all_rows() -> None:
    """The levels and the scale that one row of all values has."""
    x = np.random.default_rng(2).normal(size=(3, 4, 5)).astype(np.float32)
    levels, scale = mathfn.quantize_all(x)
    row_levels, row_scale = mathfn.quantize_rows(x.reshape(3, 20))
    np.testing.assert_array_equal(levels.reshape(3, 20), row_levels)
    np.testing.assert_array_equal(scale, row_scale[:, 0])


def test_rows_with_overflow_are_defined() -> None:
    levels, scale = mathfn.quantize_rows(
        np.array([[np.inf, 1.0, -np.inf, np.nan], [1.0, np.nan, 0.5, 0.0]], np.float32)
    )
    assert levels.tolist() == [[-127, 0, -127, -127], [127, -127, 64, 0]]
    assert scale[0, 0] == np.inf
    assert scale[1, 0] == np.float32(1) / np.float32(127)


@given(st.integers(0, 2**32 - 1), st.floats(1e-20, 1e20))
def test_quantized_rows_are_within_half_a_step(seed: int, size: float) -> None:
    x = (np.random.default_rng(seed).normal(size=(3, 33)) * size).astype(np.float32)
    levels, scale = mathfn.quantize_rows(x)
    error = np.abs(levels * scale.astype(np.float64) - x)
    assert (error <= 0.5001 * scale).all()
    assert (np.abs(levels).max(axis=1) == 127).all()


def test_softmax_is_close_to_float64_and_sums_to_one() -> None:
    x = np.random.default_rng(0).normal(size=(20, 37)).astype(np.float32) * 10
    exact = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    exact /= exact.sum(axis=1, keepdims=True)
    got = mathfn.softmax(x)
    assert got.dtype == np.float32
    assert np.abs(got - exact).max() < 1e-6
    assert np.abs(got.sum(axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize(("bits", "most"), [(0, 127), (8, 127), (6, 31), (4, 7)])
def test_levels_of_fewer_bits_are_idempotent_monotone_and_use_the_range(bits: int, most: int) -> None:
    """Of rows of all sizes, plain or with one value that is far larger than the others."""
    limit = mathfn.largest_level(bits)
    assert limit == most and limit.dtype == np.float32
    rng = np.random.default_rng(bits)
    x = (rng.normal(size=(10_000, 33)) * 10.0 ** rng.uniform(-20, 20, (10_000, 1))).astype(np.float32)
    x[::3, 5] *= 100
    x.sort(axis=1)
    levels, scale = mathfn.quantize_rows(x, limit)
    assert (np.abs(levels.astype(int)).max(axis=1) == most).all()
    assert (np.diff(levels.astype(int), axis=1) >= 0).all()
    again, scale_again = mathfn.quantize_rows(levels * scale, limit)
    assert np.array_equal(again, levels)
    assert np.allclose(scale_again, scale, rtol=3e-7, atol=0)
