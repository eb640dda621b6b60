"""Random cases for each op of the table, shared by the suites that run on it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from lilliput.program.formats import round_bf16
from lilliput.program.op_functions import COARSE_ACTIVATIONS
from lilliput.program.op_shapes import LEVEL_BITS
from lilliput.program.ops import ACTIVATIONS, OPS

Array = NDArray[Any]
Floats = Callable[..., Array]  # shape -> activations
F = np.float32
EXTREMES = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, -1e-31, 0.0, -0.0, 1e30, 65504.0], F)


class Case(NamedTuple):
    """A batch of inputs [B, rows, cols], the tensors and the attributes."""

    inputs: list[Array]
    tensors: list[Array]
    attributes: Mapping[str, int | float]


def bf16(rng: np.random.Generator, cols: int, low: float = -1.0, high: float = 1.0) -> Array:
    return round_bf16(rng.uniform(low, high, (1, cols)).astype(F))


def levels(rng: np.random.Generator, rows: int, cols: int) -> Array:
    return rng.integers(-127, 128, (rows, cols)).astype(np.int8)


def make_normalize(rng: np.random.Generator, floats: Floats) -> Case:
    rows, channels = rng.integers(1, 9), rng.integers(1, 5)
    pixels = rng.integers(0, 256, (3, rows, channels)).astype(np.uint8)
    return Case([pixels], [rng.normal(size=(1, channels)).astype(F) for _ in range(2)], {})


def make_unfold(rng: np.random.Generator, floats: Floats) -> Case:
    kernel = int(rng.integers(1, 4))
    padding = int(rng.integers(0, kernel))
    height, width = (int(rng.integers(kernel, 7)) for _ in range(2))
    attributes = {"height": height, "width": width, "kernel": kernel, "stride": int(rng.integers(1, 4))}
    return Case([floats(3, height * width, rng.integers(1, 4))], [], {**attributes, "padding": padding})


def make_quantize(rng: np.random.Generator, floats: Floats) -> Case:
    return Case([floats(3, rng.integers(1, 5), rng.integers(1, 40))], [], {"bits": int(rng.choice(LEVEL_BITS))})


def make_linear(rng: np.random.Generator, floats: Floats) -> Case:
    rows, inputs, outputs = (int(rng.integers(1, high)) for high in (5, 40, 20))
    x = np.zeros((3, rows, -(-inputs // 8) * 8), np.int8)
    x[:, :, :inputs] = rng.integers(-127, 128, (3, rows, inputs))
    tensors = [levels(rng, outputs, inputs), bf16(rng, outputs, 0.0, 0.01), bf16(rng, outputs)]
    x_scale = x if rng.random() < 0.3 else np.abs(floats(3, rows, 1))  # `x` again: there are no scales
    return Case([x, x_scale], tensors, {"activation": int(rng.integers(0, len(ACTIVATIONS)))})


def make_linear_levels(rng: np.random.Generator, floats: Floats) -> Case:
    inputs, tensors, _ = make_linear(rng, floats)
    attributes = {"activation": int(rng.integers(len(COARSE_ACTIVATIONS))), "bits": int(rng.choice(LEVEL_BITS))}
    return Case(inputs, [*tensors, bf16(rng, len(tensors[0]), 10.0, 60.0)], attributes)


def make_linear_add(rng: np.random.Generator, floats: Floats) -> Case:
    (x, x_scale), tensors, _ = make_linear(rng, floats)
    return Case([x, x_scale, floats(3, x.shape[1], len(tensors[0]))], tensors, {})


def make_layer_norm(rng: np.random.Generator, floats: Floats) -> Case:
    width = int(rng.integers(1, 50))
    tensors = [bf16(rng, width, 0.5, 1.5), bf16(rng, width)]
    return Case([floats(3, rng.integers(1, 5), width)], tensors, {"eps": float(F(1e-6))})


def make_attention(rng: np.random.Generator, floats: Floats) -> Case:
    tokens, num_heads, head_dim = (int(rng.integers(low, high)) for low, high in ((1, 22), (1, 4), (1, 19)))
    attributes = {"num_heads": num_heads, "head_dim": head_dim, "logit_scale": float(F(head_dim**-0.5))}
    attributes["num_queries"] = int(rng.integers(0, tokens))
    return Case([floats(2, tokens, 3 * num_heads * head_dim)], [], attributes)


def make_table_attention(rng: np.random.Generator, floats: Floats) -> Case:
    inputs, _, attributes = make_attention(rng, floats)
    return Case(inputs, [], {**attributes, "logit_scale": float(F(32 * attributes["logit_scale"]))})


def make_prepend_token(rng: np.random.Generator, floats: Floats) -> Case:
    width = int(rng.integers(1, 9))
    return Case([floats(3, rng.integers(1, 5), width)], [levels(rng, 1, width), bf16(rng, 1, 0.0, 1.0)], {})


def make_add_positions(rng: np.random.Generator, floats: Floats) -> Case:
    tokens, width = (int(side) for side in rng.integers(1, 9, 2))
    return Case([floats(3, tokens, width)], [levels(rng, tokens, width), bf16(rng, tokens, 0.0, 1.0)], {})


def make_select_row(rng: np.random.Generator, floats: Floats) -> Case:
    rows = int(rng.integers(1, 6))
    return Case([floats(3, rows, rng.integers(1, 9))], [], {"row": int(rng.integers(0, rows))})


def make_mean_rows(rng: np.random.Generator, floats: Floats) -> Case:
    return Case([floats(3, rng.integers(1, 40), rng.integers(1, 9))], [], {})


def make_embed_tokens(rng: np.random.Generator, floats: Floats) -> Case:
    known, tokens, width = (int(rng.integers(1, high)) for high in (30, 9, 9))
    ids = rng.integers(0, known, (3, tokens, 1), dtype=np.uint32)
    return Case([ids], [levels(rng, known, width), bf16(rng, known, 0.0, 1.0)], {})


def make_normalize_rows(rng: np.random.Generator, floats: Floats) -> Case:
    return Case([floats(3, rng.integers(1, 5), rng.integers(1, 50))], [], {})


def make_scale_shift(rng: np.random.Generator, floats: Floats) -> Case:
    width = int(rng.integers(1, 50))
    return Case([floats(3, rng.integers(1, 5), width)], [bf16(rng, width), bf16(rng, width)], {})


def make_neighbors(rng: np.random.Generator, floats: Floats) -> Case:
    return Case([floats(3, rng.integers(1, 6), rng.integers(1, 9))], [], {})


def make_concat(rng: np.random.Generator, floats: Floats) -> Case:
    rows = int(rng.integers(1, 5))
    return Case([floats(3, rows, rng.integers(1, 20)) for _ in range(2)], [], {})


MAKE: dict[str, Callable[[np.random.Generator, Floats], Case]] = {
    "normalize": make_normalize,
    "unfold": make_unfold,
    "quantize": make_quantize,
    "linear": make_linear,
    "linear_add": make_linear_add,
    "layer_norm": make_layer_norm,
    "attention": make_attention,
    "prepend_token": make_prepend_token,
    "add_positions": make_add_positions,
    "select_row": make_select_row,
    "mean_rows": make_mean_rows,
    "embed_tokens": make_embed_tokens,
    "normalize_rows": make_normalize_rows,
    "scale_shift": make_scale_shift,
    "neighbors": make_neighbors,
    "concat": make_concat,
    "table_attention": make_table_attention,
    "linear_levels": make_linear_levels,
}


def _make_case(kind: str, seed: int, extreme: bool = False) -> Case:
    """The same case for the same arguments; `extreme` salts the activations with infinities, NaN and the like."""
    rng = np.random.default_rng([seed, OPS[kind].id])

    def floats(*shape: int) -> Array:
        values = rng.normal(size=shape).astype(F)
        if extreme:
            values = np.where(rng.random(shape) < 0.2, rng.choice(EXTREMES, shape), values)
        return values

    return MAKE[kind](rng, floats)


@pytest.fixture(scope="session", name="make_case")
def make_case_fixture() -> Callable[..., Case]:
    """`make_case(kind, seed, extreme=False)`; a kind without a maker fails here."""
    assert MAKE.keys() == OPS.keys()
    return _make_case
