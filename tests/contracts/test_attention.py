"""What both attentions must hold beside what test_ops.py asks of every op."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lilliput.program.op_shapes import attention_scratch_bytes, table_attention_scratch_bytes
from lilliput.program.ops import OPS
from lilliput.program.reference import apply

F = np.float32
each_kind = pytest.mark.parametrize("kind", [kind for kind in OPS if "attention" in kind])


def attend(kind: str, x: NDArray[np.float32], num_heads: int, num_queries: int = 0) -> NDArray[np.uint32]:
    """The bits of the output for x [B, T, 3 * H * dh]."""
    head_dim = x.shape[2] // (3 * num_heads)
    attributes = {"num_heads": num_heads, "head_dim": head_dim, "logit_scale": 0.4, "num_queries": num_queries}
    (y,) = apply(kind, [x], [], attributes)
    assert y.dtype == np.float32
    return y.view(np.uint32)


@each_kind
def test_of_nothing_is_zero(kind: str) -> None:
    assert (attend(kind, np.zeros((1, 5, 24), F), 2) == 0).all()


@pytest.mark.parametrize(
    ("kind", "size", "alive"),
    [
        # Multiplied by the probabilities the largest step, size / 127, is compared with 1e-30; or the size itself is.
        ("attention", 1e-28, False),
        ("attention", 2e-28, True),
        ("table_attention", 0.9e-30, False),
        ("table_attention", 1.1e-30, True),
    ],
)
def test_of_almost_nothing_is_zero(kind: str, size: float, alive: bool) -> None:
    x = np.zeros((1, 5, 24), F)
    x[:, :, 16:] = size
    y = attend(kind, x, 2).view(F)
    assert bool((y > 0).all()) is alive
    assert bool((y == 0).all()) is not alive


@each_kind
def test_gives_each_query_what_it_has_alone_in_front_of_the_same_keys(kind: str) -> None:
    """No scale spans queries: dropping one changes no other's bits, which incremental attention relies on."""
    x = np.random.default_rng(4).normal(size=(1, 9, 3 * 8)).astype(F)
    full = attend(kind, x, 1)
    x[0, 3, :8] = 5.0
    other = attend(kind, x, 1)
    assert (np.delete(full, 3, axis=1) == np.delete(other, 3, axis=1)).all()
    assert (full[:, 3] != other[:, 3]).any()


@each_kind
@pytest.mark.parametrize("queries", [1, 2, 8])
def test_fewer_queries_give_the_first_rows_of_all(kind: str, queries: int) -> None:
    x = np.random.default_rng(5).normal(size=(3, 9, 3 * 2 * 5)).astype(F)
    assert (attend(kind, x, 2, queries) == attend(kind, x, 2)[:, :queries]).all()


def test_a_key_255_steps_below_the_best_has_no_weight() -> None:
    """Weights 127, 1 and 0: of scores 0, -254.4 and -254.6, whose steps round to 254 and 255."""
    x = np.zeros((1, 3, 3), F)
    x[0, :, 0] = 127  # level 127, scale 1
    x[0, :, 1] = [0.0, -254.4 / 127, -254.6 / 127]
    x[0, :, 2] = [0.0, 127.0, 127.0]
    attributes = {"num_heads": 1, "head_dim": 1, "logit_scale": 1.0, "num_queries": 1}
    (y,) = apply("table_attention", [x], [], attributes)
    assert y.tolist() == [[[F(127) * (F(1) / F(128))]]]


@pytest.mark.parametrize("scratch_bytes", [attention_scratch_bytes, table_attention_scratch_bytes])
def test_scratch_a_token_is_enough_for_every_length(scratch_bytes: object) -> None:
    assert callable(scratch_bytes)
    for head_dim in (1, 15, 16, 17, 64, 65536):
        for tokens in [*range(1, 300), 65535, 65536]:
            padded = -(-tokens // 16) * 16
            assert scratch_bytes(tokens, head_dim) <= padded * scratch_bytes(0, head_dim)
            assert padded * scratch_bytes(0, head_dim) % 64 == 0
