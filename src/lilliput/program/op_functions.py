"""What each op computes, in numpy, over a batch: THE definition that every kernel equals bit for bit (docs/format.md).

Every function takes `inputs` [B, rows, cols] in slot order, `tensors` (int8 levels or float32 values, [rows, cols]) and
the attributes, and gives its outputs [B, rows, cols] in slot order, scratch left out. `ops` has checked all shapes.
Float steps are single float32 roundings; callers silence the floating-point flags, overflow being defined.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.program.mathfn import (
    INT8_MAX,
    TINY,
    WEIGHTS,
    Float,
    Int8,
    clamp,
    coarse_gelu,
    coarse_gelu_tanh,
    exp2,
    gelu,
    gelu_tanh,
    lane_sum,
    largest_level,
    max_from_first,
    max_from_zero,
    quantize_all,
    quantize_rows,
    relu,
    tanh,
)

Array = NDArray[Any]
Attributes = Mapping[str, int | float]
Function = Callable[[Sequence[Array], Sequence[Array], Attributes], tuple[Array, ...]]

ACTIVATIONS: tuple[Callable[[Float], Float], ...] = (lambda x: x, relu, gelu, gelu_tanh, tanh)  # by number in the file
COARSE_ACTIVATIONS = (ACTIVATIONS[0], relu, coarse_gelu, coarse_gelu_tanh)  # of levels
EXACT_IN_FLOAT32 = 2**24 // (127 * 127)  # sums of so many level products stay integers that float32 holds


def normalize(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """`x * scale[c] + shift[c]` of u8 pixels."""
    scale, shift = tensors
    return (inputs[0].astype(np.float32) * scale + shift,)


def unfold(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """Windows in row-major order; columns run (ky, kx, c); outside the image is +0."""
    height, width, kernel, stride, padding = (
        int(attributes[name]) for name in ("height", "width", "kernel", "stride", "padding")
    )
    batch, _, channels = inputs[0].shape
    image = inputs[0].reshape(batch, height, width, channels)
    image = np.pad(image, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(image, (kernel, kernel), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]  # [B, oh, ow, C, ky, kx]
    out_height, out_width = windows.shape[1:3]
    columns = windows.transpose(0, 1, 2, 4, 5, 3)
    return (np.ascontiguousarray(columns).reshape(batch, out_height * out_width, kernel * kernel * channels),)


def quantize(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """`quantize_row` of each row, its columns padded with 0 to a multiple of 8."""
    levels, scale = quantize_rows(inputs[0], largest_level(int(attributes["bits"])))
    return np.pad(levels, ((0, 0), (0, 0), (0, -levels.shape[2] % 8))), scale


def level_products(x: Int8, weight: Int8) -> NDArray[np.int32]:
    """Exact integer products x [..., R, K] times weight [..., N, K], transposed: int32 [..., R, N].

    A float product of integers is exact while no partial sum needs more bits than the mantissa has, and BLAS is fast.
    """
    dtype: type[np.floating[Any]] = np.float32 if x.shape[-1] <= EXACT_IN_FLOAT32 else np.float64
    product: Array = np.matmul(x.astype(dtype), weight.astype(dtype).swapaxes(-1, -2))
    return product.astype(np.int32)


def _affine(inputs: Sequence[Array], tensors: Sequence[Array]) -> Float:
    x, x_scale = inputs[:2]
    codes, scale, bias = tensors[:3]
    batch, rows, _ = x.shape
    sums = level_products(x[:, :, : codes.shape[1]].reshape(batch * rows, -1), codes)
    y: Float = sums.astype(np.float32).reshape(batch, rows, -1) * scale
    if x_scale.dtype == np.float32:  # else it is `x` again: there are no scales
        y *= x_scale
    y += bias
    return y


def linear(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """`act((float(acc) * scale[n]) * xscale[r] + bias[n])`."""
    y = _affine(inputs, tensors)
    return (ACTIVATIONS[int(attributes["activation"])](y),)


def linear_levels(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """Levels, up to the limit L, of what `linear` gives by coarser activations: `rint(clamp(y * multiplier[n], -L,
    L))`."""
    y = COARSE_ACTIVATIONS[int(attributes["activation"])](_affine(inputs, tensors))
    limit = largest_level(int(attributes["bits"]))
    levels = np.rint(clamp(y * tensors[3], -limit, limit)).astype(np.int8)
    return (np.pad(levels, ((0, 0), (0, 0), (0, -levels.shape[2] % 8))),)


def linear_add(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """`((float(acc) * scale[n]) * xscale[r] + bias[n]) + residual[r, n]`."""
    return (_affine(inputs, tensors) + inputs[2],)


def layer_norm(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """LayerNorm over the columns; both sums in 16 lanes."""
    (x,) = inputs
    gamma, beta = tensors
    width, eps, one = np.float32(x.shape[-1]), np.float32(attributes["eps"]), np.float32(1)
    mean = (lane_sum(x) / width)[..., None]
    d = x - mean
    variance = (lane_sum(d * d) / width)[..., None]
    r = one / np.sqrt(variance + eps)
    return ((d * r) * gamma + beta,)


Attend = Callable[[Float, Float, Float, np.float32], Float]


def attention(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """Full attention of the first `num_queries` tokens (0: of all), both products integer; columns are q, k, v blocks
    with the heads inside."""
    return _each_head(inputs[0], attributes, _attend)


def table_attention(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """The same with weights from a table, and one scale for the values of a head."""
    return _each_head(inputs[0], attributes, _attend_by_table)


def _each_head(x: Array, attributes: Attributes, attend: Attend) -> tuple[Array, ...]:
    num_heads, head_dim = int(attributes["num_heads"]), int(attributes["head_dim"])
    batch, tokens, _ = x.shape
    queries = int(attributes["num_queries"]) or tokens
    heads = x.reshape(batch, tokens, 3, num_heads, head_dim)
    out = np.empty((batch, queries, num_heads, head_dim), np.float32)
    for head in range(num_heads):
        q, k, v = (heads[:, :, block, head] for block in range(3))
        out[:, :, head] = attend(q[:, :queries], k, v, np.float32(attributes["logit_scale"]))
    return (out.reshape(batch, queries, num_heads * head_dim),)


def _attend(q: Float, k: Float, v: Float, logit_scale: np.float32) -> Float:
    """One head, q [B, Q, dh], k and v [B, T, dh]; a row of [B, Q, T] is one query's."""
    (q_levels, q_scale), (k_levels, k_scale), (v_levels, v_scale) = map(quantize_rows, (q, k, v))
    logits = level_products(q_levels, k_levels).astype(np.float32)
    logits *= q_scale * logit_scale
    logits *= k_scale.swapaxes(1, 2)
    logits -= max_from_first(logits)[..., None]
    e = exp2(logits)
    z = lane_sum(e)[..., None]
    g = e * v_scale.swapaxes(1, 2)
    w = max_from_zero(g)[..., None]
    alive = w >= TINY
    inv: Float = (INT8_MAX / np.where(alive, w, np.float32(1))).astype(np.float32)
    p = np.rint(clamp(g * inv, np.float32(0), INT8_MAX)).astype(np.int8)
    f = (w / INT8_MAX) / z
    y = level_products(p, v_levels.swapaxes(1, 2)).astype(np.float32) * f
    return np.where(alive, y, np.float32(0))


def _attend_by_table(q: Float, k: Float, v: Float, logit_scale: np.float32) -> Float:
    """As `_attend`."""
    (q_levels, q_scale), (k_levels, k_scale) = map(quantize_rows, (q, k))
    v_levels, v_scale = quantize_all(v)
    s = level_products(q_levels, k_levels).astype(np.float32)
    s *= q_scale * logit_scale
    s *= k_scale.swapaxes(1, 2)
    m = np.fmax.reduce(s, axis=-1, initial=np.float32(-np.inf))[..., None]
    x, most = m - s, np.float32(255)
    p = WEIGHTS[np.rint(np.where(x <= most, x, most)).astype(np.intp)]
    z = p.sum(axis=-1, dtype=np.int32, keepdims=True)
    f = np.where(z > 0, v_scale[:, None, None] / np.maximum(z, 1).astype(np.float32), np.float32(0))
    return level_products(p, v_levels.swapaxes(1, 2)).astype(np.float32) * f.astype(np.float32)


def prepend_token(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """Row 0 is `level * scale`; the rest is the input."""
    (x,) = inputs
    codes, scale = tensors
    token = np.broadcast_to(codes.astype(np.float32) * scale, (len(x), 1, x.shape[2]))
    return (np.concatenate([token, x], axis=1),)


def add_positions(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """`x + level * scale[t]`."""
    (x,) = inputs
    codes, scale = tensors
    rows = x.shape[1]
    return (x + codes[:rows].astype(np.float32) * scale.T[:rows],)


def select_row(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """`x[row]`."""
    row = int(attributes["row"])
    return (inputs[0][:, row : row + 1],)


def mean_rows(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """Column means, rows added in order."""
    (x,) = inputs
    total = np.zeros((len(x), 1, x.shape[2]), np.float32)
    for row in range(x.shape[1]):
        total += x[:, row : row + 1]
    return (total / np.float32(x.shape[1]),)


def embed_tokens(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """`level * scale[id]` of the codes' row of each id."""
    ids = inputs[0][..., 0]
    codes, scale = tensors
    return (codes[ids].astype(np.float32) * scale[0, ids][..., None],)


def normalize_rows(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """Each row divided by its length, which counts as 1e-12 where it is less (or NaN)."""
    (x,) = inputs
    norm, least = np.sqrt(lane_sum(x * x))[..., None], np.float32(1e-12)
    return (x / np.where(norm >= least, norm, least),)


def scale_shift(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """`x * gamma + beta`."""
    gamma, beta = tensors
    return (inputs[0] * gamma + beta,)


def neighbors(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """The token after, the token itself and the token before, one behind the other; outside is +0."""
    (x,) = inputs
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    return (np.concatenate([padded[:, 2:], x, padded[:, :-2]], axis=2),)


def concat(inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """The columns of the first input, then of the second."""
    return (np.concatenate(inputs, axis=2),)
