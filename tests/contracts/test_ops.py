"""What every op of the table must hold, on each row of it: shapes, independence in the batch, and the page's bits.

`PAGE` computes each op by plain loops over float32 scalars, in the order docs/format.md writes: the reference must
equal it bit for bit, on extreme values too. test_ops_ideal.py compares with what the ops are meant to be.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lilliput.program import mathfn
from lilliput.program.op_functions import EXACT_IN_FLOAT32, level_products
from lilliput.program.op_shapes import Operands, Shape
from lilliput.program.ops import OPS
from lilliput.program.reference import apply

if TYPE_CHECKING:
    from tests.contracts.conftest import Case

MakeCase = Callable[..., "Case"]
Array = NDArray[Any]
F = np.float32
ONE, ZERO, LIMIT, TINY = F(1), F(0), F(127), F(1e-30)
PAGE_TEXT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# The page, in scalars: one example, [rows, cols] lists in and out.


def page_clamp(x: F, low: F, high: F) -> F:
    x = x if x >= low else low
    return x if x <= high else high


def page_sum(values: Sequence[F]) -> F:
    lane = [ZERO] * 16
    for i, value in enumerate(values):
        lane[i % 16] = lane[i % 16] + value
    for width in (8, 4, 2):
        for j in range(width):
            lane[j] = lane[j] + lane[j + width]
    return F(lane[0] + lane[1])


def page_max(values: Sequence[F], start: F) -> F:
    for value in values:
        start = value if value > start else start
    return start


PAGE_LIMITS = {0: LIMIT, 6: F(31), 4: F(7)}  # by `bits`


def page_quantize_row(x: Sequence[F], limit: F = LIMIT) -> tuple[list[int], F]:
    m = page_max([abs(value) for value in x], ZERO)
    if not m >= TINY:
        return [0] * len(x), ZERO
    inv = limit / m
    return [int(np.rint(page_clamp(value * inv, -limit, limit))) for value in x], m / limit


def page_exp2(x: F) -> F:
    x = x if x >= F(-126) else F(-126)
    n = np.rint(x)
    r = x - n
    p = mathfn.EXP2_C[0]
    for c in mathfn.EXP2_C[1:]:
        p = p * r + c
    return F(p * F(2.0 ** int(n)))


def page_piecewise(x: F, name: str) -> F:
    """`h(|x|)` of the tables of mathfn that begin with `name`."""
    u = page_clamp(abs(x) * getattr(mathfn, f"{name}_INV_STEP"), ZERO, F(31.999998))
    k = int(u)
    t = u - F(k)
    c3, c2, c1, c0 = (getattr(mathfn, f"{name}_C{power}")[k] for power in (3, 2, 1, 0))
    return F(((c3 * t + c2) * t + c1) * t + c0)


def page_tanh(x: F) -> F:
    y = ONE - page_piecewise(x, "TANH")
    return F((y if x >= 0 else ZERO) - (y if x <= 0 else ZERO))


PAGE_ACTIVATIONS: tuple[Callable[[F], F], ...] = (
    lambda x: x,
    lambda x: x if x > 0 else ZERO,
    lambda x: F((x if x > 0 else ZERO) - page_piecewise(x, "GELU")),
    lambda x: F((x if x > 0 else ZERO) - page_piecewise(x, "GELU_TANH")),
    page_tanh,
)


def page_linear(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Mapping[str, Any]) -> list[Any]:
    x, x_scale = inputs[:2]
    codes, scale, bias = tensors[:3]
    y = np.empty((len(x), len(codes)), F)
    activate = PAGE_ACTIVATIONS[attributes.get("activation", 0)]
    for r in range(len(x)):
        for n in range(len(codes)):
            acc = sum(int(x[r, k]) * int(codes[n, k]) for k in range(codes.shape[1]))
            product = F(acc) * scale[0, n]
            value = (product * x_scale[r, 0] if x_scale.dtype == F else product) + bias[0, n]
            y[r, n] = value + inputs[2][r, n] if len(inputs) == 3 else activate(value)
    return [y]


def page_static_levels(rows: Sequence[Sequence[F]], multiplier: Array, limit: F) -> list[list[int]]:
    padding = [0] * (-multiplier.shape[1] % 8)
    return [
        [int(np.rint(page_clamp(y * m, -limit, limit))) for y, m in zip(row, multiplier[0], strict=True)] + padding
        for row in rows
    ]


def page_coarse(x: F, name: str) -> F:
    end = np.nextafter(F(3.9375), ZERO)
    a = abs(x) if abs(x) <= end else end
    k = int(np.rint(a * F(8)))
    return F((x if x > 0 else ZERO) - (getattr(mathfn, f"{name}_C1")[k] * a + getattr(mathfn, f"{name}_C0")[k]))


PAGE_COARSE: tuple[Callable[[F], F], ...] = (
    *PAGE_ACTIVATIONS[:2],
    lambda x: page_coarse(x, "GELU_LINES"),
    lambda x: page_coarse(x, "GELU_TANH_LINES"),
)


def page_linear_levels(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Mapping[str, Any]) -> list[Any]:
    (y,) = page_linear(inputs, tensors, {})
    activated = [[PAGE_COARSE[attributes["activation"]](value) for value in row] for row in y]
    return [page_static_levels(activated, tensors[3], PAGE_LIMITS[attributes["bits"]])]


def page_layer_norm(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Mapping[str, Any]) -> list[Any]:
    width, eps = F(inputs[0].shape[1]), F(attributes["eps"])
    y = np.empty_like(inputs[0])
    for r, x in enumerate(inputs[0]):
        mean = page_sum(list(x)) / width
        d = [value - mean for value in x]
        v = page_sum([value * value for value in d]) / width
        scale = ONE / np.sqrt(v + eps)
        y[r] = [(d[c] * scale) * tensors[0][0, c] + tensors[1][0, c] for c in range(len(d))]
    return [y]


def page_scores(q: tuple[list[int], F], keys: Sequence[tuple[list[int], F]], logit_scale: F) -> list[F]:
    c = q[1] * logit_scale
    dots = [sum(a * b for a, b in zip(q[0], key[0], strict=True)) for key in keys]
    return [(F(dot) * c) * key[1] for dot, key in zip(dots, keys, strict=True)]


def page_mix(p: Sequence[int], values: Sequence[Sequence[int]], f: F) -> list[F]:
    return [F(sum(a * b for a, b in zip(p, column, strict=True))) * f for column in zip(*values, strict=True)]


def page_softmax_head(q: Array, k: Array, v: Array, logit_scale: F) -> Array:
    """One head of `attention`: rows of tokens, [Q, dh] and [T, dh] twice."""
    keys, values = ([page_quantize_row(row) for row in x] for x in (k, v))
    y = np.empty_like(q)
    for i, row in enumerate(q):
        s = page_scores(page_quantize_row(row), keys, logit_scale)
        m = page_max(s, s[0])
        e = [page_exp2(value - m) for value in s]
        z = page_sum(e)
        g = [value * scale for value, (_, scale) in zip(e, values, strict=True)]
        w = page_max(g, ZERO)
        if not w >= TINY:
            y[i] = ZERO
            continue
        inv = LIMIT / w
        p = [int(np.rint(page_clamp(value * inv, ZERO, LIMIT))) for value in g]
        y[i] = page_mix(p, [levels for levels, _ in values], (w / LIMIT) / z)
    return y


def page_weight(t: int) -> int:
    return 0 if t == 255 else round(127 * 2 ** (-t / 32))


def page_table_head(q: Array, k: Array, v: Array, logit_scale: F) -> Array:
    """The same of `table_attention`."""
    keys = [page_quantize_row(row) for row in k]
    levels, value_scale = page_quantize_row(list(v.ravel()))
    values = [levels[start : start + v.shape[1]] for start in range(0, v.size, v.shape[1])]
    y = np.empty_like(q)
    for i, row in enumerate(q):
        s = page_scores(page_quantize_row(row), keys, logit_scale)
        m = page_max(s, F(-np.inf))
        steps = [m - value for value in s]
        p = [page_weight(int(np.rint(x if x <= F(255) else F(255)))) for x in steps]
        z = sum(p)
        y[i] = page_mix(p, values, value_scale / F(z) if z else ZERO)
    return y


def page_attention(head_of: Callable[[Array, Array, Array, F], Array]) -> Callable[..., list[Any]]:
    def page(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Mapping[str, Any]) -> list[Any]:
        (x,) = inputs
        num_heads, head_dim = attributes["num_heads"], attributes["head_dim"]
        queries, outputs = attributes["num_queries"] or len(x), []
        for head in range(num_heads):
            starts = [(block * num_heads + head) * head_dim for block in range(3)]
            q, k, v = (x[:, start : start + head_dim] for start in starts)
            outputs.append(head_of(q[:queries], k, v, F(attributes["logit_scale"])))
        return [np.concatenate(outputs, axis=1)]

    return page


def page_unfold(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Mapping[str, Any]) -> list[Any]:
    height, width, kernel, stride, padding = attributes.values()
    (x,) = inputs
    rows = []
    for top in range(-padding, height + padding - kernel + 1, stride):
        for left in range(-padding, width + padding - kernel + 1, stride):
            row: list[F] = []
            for y, column in ((top + ky, left + kx) for ky in range(kernel) for kx in range(kernel)):
                inside = 0 <= y < height and 0 <= column < width
                row.extend(x[y * width + column] if inside else [ZERO] * x.shape[1])
            rows.append(row)
    return [rows]


def page_quantize(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Mapping[str, Any]) -> list[Any]:
    pairs = [page_quantize_row(row, PAGE_LIMITS[attributes["bits"]]) for row in inputs[0]]
    padding = [0] * (-inputs[0].shape[1] % 8)
    return [[row + padding for row, _ in pairs], [[scale] for _, scale in pairs]]


def page_mean_rows(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Mapping[str, Any]) -> list[Any]:
    means = []
    for column in inputs[0].T:
        total = ZERO
        for value in column:
            total = total + value
        means.append(total / F(len(column)))
    return [[means]]


def page_normalize_rows(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Mapping[str, Any]) -> list[Any]:
    rows = []
    for x in inputs[0]:
        n = np.sqrt(page_sum([value * value for value in x]))
        rows.append([value / (n if n >= F(1e-12) else F(1e-12)) for value in x])
    return [rows]


def page_neighbors(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Mapping[str, Any]) -> list[Any]:
    (x,) = inputs
    rows = []
    for t in range(len(x)):
        row: list[F] = []
        for at in (t + 1, t, t - 1):
            row.extend(x[at] if 0 <= at < len(x) else [ZERO] * x.shape[1])
        rows.append(row)
    return [rows]


PAGE: dict[str, Callable[[Sequence[Array], Sequence[Array], Mapping[str, Any]], list[Any]]] = {
    "normalize": lambda i, t, a: [
        [[F(v) * s + b for v, s, b in zip(row, t[0][0], t[1][0], strict=True)] for row in i[0]]
    ],
    "unfold": page_unfold,
    "quantize": page_quantize,
    "linear": page_linear,
    "linear_add": page_linear,
    "layer_norm": page_layer_norm,
    "attention": page_attention(page_softmax_head),
    "prepend_token": lambda i, t, a: [[[F(level) * t[1][0, 0] for level in t[0][0]], *i[0]]],
    "add_positions": lambda i, t, a: [
        [[v + F(level) * t[1][0, r] for v, level in zip(i[0][r], t[0][r], strict=True)] for r in range(len(i[0]))]
    ],
    "select_row": lambda i, t, a: [[i[0][a["row"]]]],
    "mean_rows": page_mean_rows,
    "embed_tokens": lambda i, t, a: [[[F(level) * t[1][0, id_] for level in t[0][id_]] for id_ in i[0][:, 0]]],
    "normalize_rows": page_normalize_rows,
    "scale_shift": lambda i, t, a: [
        [[v * gamma + beta for v, gamma, beta in zip(row, t[0][0], t[1][0], strict=True)] for row in i[0]]
    ],
    "neighbors": page_neighbors,
    "concat": lambda i, t, a: [[[*first, *second] for first, second in zip(*i, strict=True)]],
    "table_attention": page_attention(page_table_head),
    "linear_levels": page_linear_levels,
}


# ---------------------------------------------------------------------------------------------------------------------

each_op = pytest.mark.parametrize("kind", OPS)
each_seed = pytest.mark.parametrize("seed", range(6))


def same_bits(a: Array, b: Array) -> bool:
    """Equal bit for bit; any NaN equals any other, as the page leaves their bits open."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype != F:
        return bool((a == b).all())
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())


def page_outputs(kind: str, case: "Case") -> list[Array]:
    """The page's outputs for the whole batch."""
    slots = [slot for slot in OPS[kind].outputs if not slot.scratch]
    outputs: list[list[Array]] = [[] for _ in slots]
    with np.errstate(all="ignore"):
        for example in range(len(case.inputs[0])):
            results = PAGE[kind]([x[example] for x in case.inputs], case.tensors, case.attributes)
            for collected, result, slot in zip(outputs, results, slots, strict=True):
                collected.append(np.array(result, np.int8 if slot.dtype == "i8" else F))
    return [np.stack(collected) for collected in outputs]


def test_every_op_is_covered() -> None:
    assert PAGE.keys() == OPS.keys()


@each_op
def test_id_is_that_of_the_page(kind: str) -> None:
    row = re.search(rf"^\| (\d+) \| `{kind}` \|", PAGE_TEXT, re.MULTILINE)
    assert row is not None
    assert int(row[1]) == OPS[kind].id


@each_op
@each_seed
def test_outputs_have_the_shapes_of_the_rule(kind: str, make_case: MakeCase, seed: int) -> None:
    case = make_case(kind, seed)
    shapes = OPS[kind].shapes(
        Operands(
            tuple(Shape(*x.shape[1:]) for x in case.inputs),
            tuple(Shape(*tensor.shape) for tensor in case.tensors),
            case.attributes,
            has_scales=len(case.inputs) == 1 or case.inputs[1] is not case.inputs[0],
        )
    )
    wanted = [(shape, slot.dtype) for shape, slot in zip(shapes, OPS[kind].outputs, strict=True) if not slot.scratch]
    names = {np.dtype(np.float32): "f32", np.dtype(np.int8): "i8"}
    outputs = apply(kind, *case)
    assert [(Shape(*output.shape[1:]), names[output.dtype]) for output in outputs] == wanted
    assert all(len(output) == len(case.inputs[0]) for output in outputs)


@each_op
@each_seed
def test_examples_do_not_depend_on_their_batch(kind: str, make_case: MakeCase, seed: int) -> None:
    case = make_case(kind, seed)
    together = apply(kind, *case)
    for example in range(len(case.inputs[0])):
        alone = apply(kind, [x[example : example + 1] for x in case.inputs], case.tensors, case.attributes)
        assert all(same_bits(a, b[example : example + 1]) for a, b in zip(alone, together, strict=True))


@each_op
def test_running_twice_gives_the_same_and_leaves_the_inputs_alone(kind: str, make_case: MakeCase) -> None:
    case, untouched = make_case(kind, 1), make_case(kind, 1)
    first, second = apply(kind, *case), apply(kind, *case)
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    arrays, originals = [*case.inputs, *case.tensors], [*untouched.inputs, *untouched.tensors]
    assert all(same_bits(a, b) for a, b in zip(arrays, originals, strict=True))


@each_op
@each_seed
@pytest.mark.parametrize("extreme", [False, True])
def test_bits_are_those_of_the_page(kind: str, make_case: MakeCase, seed: int, extreme: bool) -> None:
    case = make_case(kind, seed, extreme)
    for got, wanted in zip(apply(kind, *case), page_outputs(kind, case), strict=True):
        assert same_bits(got, wanted)


def test_a_sequence_takes_the_first_of_the_positions() -> None:
    rng = np.random.default_rng(6)
    x, codes = rng.normal(size=(2, 3, 5)).astype(F), rng.integers(-7, 8, (9, 5)).astype(np.int8)
    scale = rng.random((1, 9)).astype(F)
    (got,) = apply("add_positions", [x], [codes, scale], {})
    (wanted,) = apply("add_positions", [x], [codes[:3], scale[:, :3]], {})
    assert same_bits(got, wanted)


@pytest.mark.parametrize("size", [0.0, 1e-13, 1e-30, np.nan])
def test_a_row_without_length_is_divided_by_the_least(size: float) -> None:
    (y,) = apply("normalize_rows", [np.full((1, 1, 3), size, F)], [], {})
    assert same_bits(y, np.full((1, 1, 3), size, F) / F(1e-12))


@pytest.mark.parametrize("length", [1, EXACT_IN_FLOAT32, EXACT_IN_FLOAT32 + 1, 65536])
@pytest.mark.parametrize("sign", [1, -1])
def test_largest_sums_are_exact_in_int32(length: int, sign: int) -> None:
    x, weight = np.full((1, length), 127, np.int8), np.full((1, length), sign * 127, np.int8)
    product = level_products(x, weight)
    assert product.tolist() == [[sign * 127 * 127 * length]]
    assert product.dtype == np.int32


@pytest.mark.parametrize("length", [EXACT_IN_FLOAT32, EXACT_IN_FLOAT32 + 1, 5000])
def test_products_are_exact_around_the_switch_to_float64(length: int) -> None:
    rng = np.random.default_rng(length)
    x, weight = (rng.choice([-127, -126, 125, 127], (7, length)).astype(np.int8) for _ in range(2))
    np.testing.assert_array_equal(level_products(x, weight), x.astype(np.int64) @ weight.T.astype(np.int64))


def test_integer_zero_is_positive() -> None:
    """0 * -5 is -0 in float; an integer sum has no sign of zero."""
    x, scale = np.zeros((1, 1, 8), np.int8), np.ones((1, 1, 1), F)
    tensors = (np.full((1, 8), -5, np.int8), np.ones((1, 1), F), np.full((1, 1), -0.0, F))
    (y,) = apply("linear", [x, scale], tensors, {"activation": 0})
    assert y.tolist() == [[[0.0]]]
    assert not np.signbit(y).any()
