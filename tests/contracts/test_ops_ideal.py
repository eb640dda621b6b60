"""Every op is near what it is meant to be: float64, and a bound that says how near."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lilliput.program.ops import OPS
from lilliput.program.reference import apply

if TYPE_CHECKING:
    from tests.contracts.conftest import Case

MakeCase = Callable[..., "Case"]
Array = NDArray[Any]

# The outputs for the batch, and the largest allowed difference, as numbers or arrays.
Ideal = tuple[list[Array], list[Any]]
MOST = {0: 127, 6: 31, 4: 7}  # levels, by `bits`


def ideal_normalize(i: Sequence[Array], t: Sequence[Array], a: Mapping[str, Any]) -> Ideal:
    product = i[0] * t[0].astype(np.float64)
    return [product + t[1]], [1.3e-7 * (np.abs(product) + np.abs(t[1]))]


def ideal_unfold(i: Sequence[Array], t: Sequence[Array], a: Mapping[str, Any]) -> Ideal:
    padding, stride = a["padding"], a["stride"]
    image = i[0].reshape(len(i[0]), a["height"], a["width"], -1)
    image = np.pad(image, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    tops, lefts = (range(0, side - a["kernel"] + 1, stride) for side in image.shape[1:3])
    windows = [
        image[:, top : top + a["kernel"], left : left + a["kernel"]].reshape(len(image), -1)
        for top in tops
        for left in lefts
    ]
    return [np.stack(windows, axis=1)], [0.0]


def ideal_quantize(i: Sequence[Array], t: Sequence[Array], a: Mapping[str, Any]) -> Ideal:
    """The levels are those of exact arithmetic but at ties, so they may differ by one there, and only there."""
    scale = np.abs(i[0].astype(np.float64)).max(axis=2, keepdims=True) / MOST[a["bits"]]
    exact = np.pad(i[0] / scale, ((0, 0), (0, 0), (0, -i[0].shape[2] % 8)))
    return [exact, scale], [0.5 + 1e-4, 1e-7 * scale]


def ideal_linear(i: Sequence[Array], t: Sequence[Array], a: Mapping[str, Any]) -> Ideal:
    weight = t[0] * t[1].T.astype(np.float64)
    x_scale = i[1].astype(np.float64) if i[1].dtype == np.float32 else 1.0
    product = (i[0][:, :, : t[0].shape[1]] * x_scale) @ weight.T
    y = product + t[2] + (i[2] if len(i) == 3 else 0.0)
    bound = 4e-7 * (np.abs(product) + np.abs(t[2]) + np.abs(y)) + 2e-6
    activation = a.get("activation", 0)
    if activation == 1:
        y = np.maximum(y, 0)
    elif activation == 2:
        y = y * np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)))(y)
        bound = bound * 1.13  # the steepest slope of gelu
    elif activation == 3:
        y = y / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        bound = bound * 1.13
    elif activation == 4:
        y = np.tanh(y)
        bound = bound + 1e-5
    return [y], [bound]


def ideal_levels(y: Array, multiplier: Array, bound: Any, most: int) -> tuple[Array, Any]:
    """Of values that are known but for `bound`; as in `quantize`, a level may differ by one where that makes a tie."""
    padding = ((0, 0), (0, 0), (0, -y.shape[2] % 8))
    exact = np.pad(np.clip(y * multiplier, -most, most), padding)
    return exact, 0.5 + 1e-4 + np.pad(np.broadcast_to(bound * multiplier, y.shape), padding)


def ideal_linear_levels(i: Sequence[Array], t: Sequence[Array], a: Mapping[str, Any]) -> Ideal:
    (y,), (bound,) = ideal_linear(i, t, a)
    levels, within = ideal_levels(y, t[3], bound + (8e-4 if a["activation"] > 1 else 0.0), MOST[a["bits"]])
    return [levels], [within]


def ideal_layer_norm(i: Sequence[Array], t: Sequence[Array], a: Mapping[str, Any]) -> Ideal:
    x = i[0].astype(np.float64)
    d = x - x.mean(axis=2, keepdims=True)
    r = 1 / np.sqrt((d * d).mean(axis=2, keepdims=True) + a["eps"])
    # The mean's rounding error is a few units in the last place of the largest value; r carries it on.
    size = np.abs(x).max(axis=2, keepdims=True)
    return [d * r * t[0] + t[1]], [1e-6 * (1 + np.abs(d * r)) * (1 + size * r)]


def softmax_terms(x: Array, a: Mapping[str, Any], base: float) -> tuple[Array, Array, Array]:
    """Of attention on [B, T, 3 * H * dh] whose logits are to `base`: each weight before it is divided by their sum, how
    far off a logit may be by half a quantisation step of q and k, and the values."""
    heads, width = a["num_heads"], a["head_dim"]
    batch, tokens, _ = x.shape
    q, k, v = x.astype(np.float64).reshape(batch, tokens, 3, heads, width).transpose(2, 0, 3, 1, 4)
    q = q[:, :, : a["num_queries"] or tokens]
    q_step, k_step = (np.abs(part).max(axis=3, keepdims=True) / 127 for part in (q, k))
    logit_scale = a["logit_scale"] * np.log(base)
    logits = logit_scale * q @ k.swapaxes(2, 3)
    k_step_row = k_step.swapaxes(2, 3)
    off = np.abs(q).sum(axis=3, keepdims=True) * k_step_row / 2 + q_step / 2 * np.abs(k).sum(axis=3)[:, :, None]
    off = (logit_scale * (off + width * q_step * k_step_row / 4)).max(axis=3, keepdims=True)
    return np.exp(logits - logits.max(axis=3, keepdims=True)), off, v


def join_heads(y: Array) -> Array:
    batch, heads, queries, width = y.shape
    return y.swapaxes(1, 2).reshape(batch, queries, heads * width)


def ideal_attention(i: Sequence[Array], t: Sequence[Array], a: Mapping[str, Any]) -> Ideal:
    """Softmax attention; the bound follows half a quantisation step of q, k, v and the probabilities through it."""
    e, off, v = softmax_terms(i[0], a, 2.0)
    z = e.sum(axis=3, keepdims=True)
    v_step = np.abs(v).max(axis=3, keepdims=True) / 127
    biggest, v_biggest_step = np.abs(v).max(axis=2, keepdims=True), v_step.max(axis=2, keepdims=True)
    bound = (
        biggest * np.expm1(2 * off)
        + v_biggest_step / 2
        + v.shape[2] * v_biggest_step / 2 / z * np.exp(2 * off)
        + 3e-4 * biggest
        + 1e-5
    )
    return [join_heads((e / z) @ v)], [join_heads(bound)]


def ideal_table_attention(i: Sequence[Array], t: Sequence[Array], a: Mapping[str, Any]) -> Ideal:
    """The same: a weight is off by half a step of its logarithm, and of its 127 levels."""
    e, off, v = softmax_terms(i[0], a, 2.0 ** (1 / 32))
    z = e.sum(axis=3, keepdims=True)
    wrong = (e * np.expm1(2 * off + math.log(2) / 64) + 0.51 / 127).sum(axis=3, keepdims=True)
    biggest = np.abs(v).max(axis=(2, 3), keepdims=True)
    bound = biggest * (2 * wrong / np.maximum(z - wrong, 1) + 0.5 / 127) + 1e-5  # the largest weight is always 1
    return [join_heads((e / z) @ v)], [join_heads(np.broadcast_to(bound, (*e.shape[:3], v.shape[3])))]


def ideal_prepend_token(i: Sequence[Array], t: Sequence[Array], a: Mapping[str, Any]) -> Ideal:
    token = np.broadcast_to(t[0] * t[1].astype(np.float64), (len(i[0]), 1, i[0].shape[2]))
    return [np.concatenate([token, i[0]], axis=1)], [1e-5]


def ideal_normalize_rows(i: Sequence[Array], t: Sequence[Array], a: Mapping[str, Any]) -> Ideal:
    x = i[0].astype(np.float64)
    return [x / np.sqrt((x * x).sum(axis=2, keepdims=True))], [1e-6]


def ideal_neighbors(i: Sequence[Array], t: Sequence[Array], a: Mapping[str, Any]) -> Ideal:
    nothing = np.zeros_like(i[0][:, :1])
    after, before = np.concatenate([i[0][:, 1:], nothing], 1), np.concatenate([nothing, i[0][:, :-1]], 1)
    return [np.stack([after, i[0], before], axis=2).reshape(*i[0].shape[:2], -1)], [0.0]


def ideal_add_positions(i: Sequence[Array], t: Sequence[Array], a: Mapping[str, Any]) -> Ideal:
    return [i[0] + t[0] * t[1].T.astype(np.float64)], [2e-5]


IDEAL: dict[str, Callable[[Sequence[Array], Sequence[Array], Mapping[str, Any]], Ideal]] = {
    "normalize": ideal_normalize,
    "unfold": ideal_unfold,
    "quantize": ideal_quantize,
    "linear": ideal_linear,
    "linear_add": ideal_linear,
    "layer_norm": ideal_layer_norm,
    "attention": ideal_attention,
    "prepend_token": ideal_prepend_token,
    "add_positions": ideal_add_positions,
    "select_row": lambda i, t, a: ([i[0][:, a["row"], None]], [0.0]),
    "mean_rows": lambda i, t, a: ([i[0].astype(np.float64).mean(axis=1, keepdims=True)], [1e-6]),
    "embed_tokens": lambda i, t, a: ([(t[0] * t[1].T.astype(np.float64))[i[0][..., 0]]], [1e-5]),
    "normalize_rows": ideal_normalize_rows,
    "scale_shift": lambda i, t, a: ([i[0] * t[0].astype(np.float64) + t[1]], [1e-6]),
    "neighbors": ideal_neighbors,
    "concat": lambda i, t, a: ([np.concatenate(i, axis=2)], [0.0]),
    "table_attention": ideal_table_attention,
    "linear_levels": ideal_linear_levels,
}


def test_every_op_is_covered() -> None:
    assert IDEAL.keys() == OPS.keys()


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("seed", range(6))
def test_outputs_are_near_the_ideal(kind: str, make_case: MakeCase, seed: int) -> None:
    case = make_case(kind, seed)
    ideals, bounds = IDEAL[kind](*case)
    for got, wanted, bound in zip(apply(kind, *case), ideals, bounds, strict=True):
        assert (np.abs(got - wanted) <= bound).all()


@pytest.mark.parametrize(("kind", "steps", "bound"), [("attention", 1, 0.02), ("table_attention", 32, 0.02)])
def test_attention_is_close_to_softmax_attention_on_ordinary_values(kind: str, steps: int, bound: float) -> None:
    """The bound above is a worst case; on values as they come the error is a percent or so. `steps` an octave."""
    x = np.random.default_rng(3).normal(size=(4, 65, 3 * 4 * 32)).astype(np.float32)
    attributes = {"num_heads": 4, "head_dim": 32, "logit_scale": steps * 32**-0.5, "num_queries": 0}
    (got,) = apply(kind, [x], [], attributes)
    ideals, _ = IDEAL[kind]([x], [], attributes)
    assert np.linalg.norm(got - ideals[0]) / np.linalg.norm(ideals[0]) < bound
