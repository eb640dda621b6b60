"""The float32 functions of docs/format.md, "Exact arithmetic", in numpy: every step is one rounding to binary32.

Each function takes and gives float32 arrays and works along the last axis where it needs one. Overflow, infinities and
NaN are defined behaviour, so the floating-point flags are silenced. tools/fit_polynomials.py prints the coefficients.
"""

from typing import cast

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Int8 = NDArray[np.int8]

LANES = 16
TINY = np.float32(1e-30)  # rows whose largest magnitude is below this are zero
INT8_MAX = np.float32(127)


def _hex(word: str) -> np.float32:
    return np.float32(float.fromhex(word))


def _hex_table(words: str) -> Float:
    return np.array([float.fromhex(word) for word in words.split()], np.float32)


# Printed by `python tools/fit_polynomials.py python`
EXP2_C = _hex_table("""
    0x1.c2a216p-5 0x1.f00c4ep-3 0x1.62f5fap-1 0x1p+0
""")
GELU_INV_STEP = _hex("0x1.745d18p+2")
GELU_C3 = _hex_table("""
    0x1.e31d5ep-14 0x1.5a98fcp-12 0x1.081acap-11 0x1.42b5fep-11
    0x1.58c984p-11 0x1.4c0dd8p-11 0x1.234662p-11 0x1.d0ab9cp-12
    0x1.4bf63p-12 0x1.9726a4p-13 0x1.763276p-14 0x1.35365ap-17
    -0x1.71ad3ap-15 -0x1.32dc2p-14 -0x1.5cc24ep-14 -0x1.4f9d7ap-14
    -0x1.22e2c4p-14 -0x1.d2822ep-15 -0x1.5f0ce8p-15 -0x1.f40ac6p-16
    -0x1.52ee5cp-16 -0x1.b6efa6p-17 -0x1.104764p-17 -0x1.444524p-18
    -0x1.7350a2p-19 -0x1.995314p-20 -0x1.b2d59p-21 -0x1.bd8658p-22
    -0x1.b8915cp-23 -0x1.a4b9ecp-24 -0x1.84317ap-25 -0x1.5a367cp-26
""")
GELU_C2 = _hex_table("""
    -0x1.84724ap-7 -0x1.78e8bcp-7 -0x1.58071ap-7 -0x1.2604acp-7
    -0x1.d20198p-8 -0x1.4fd28cp-8 -0x1.a54f2p-9 -0x1.944ccp-10
    -0x1.bc638cp-13 0x1.81787p-11 0x1.581fccp-10 0x1.9cbcbep-10
    0x1.a2797ap-10 0x1.7e8c06p-10 0x1.4413bp-10 0x1.0218b2p-10
    0x1.85c0b2p-11 0x1.188582p-11 0x1.825984p-12 0x1.fe7288p-13
    0x1.441d62p-13 0x1.8c37c2p-14 0x1.d2cdeep-15 0x1.09437cp-15
    0x1.230a2p-16 0x1.3475f8p-17 0x1.3bf8e2p-18 0x1.38f618p-19
    0x1.2bd6fcp-20 0x1.15f65ap-21 0x1.f2cebep-23 0x1.b14a0ap-24
""")
GELU_C1 = _hex_table("""
    0x1.600c72p-4 0x1.00717cp-4 0x1.4cb3a4p-5 0x1.5a531cp-6
    0x1.4a8764p-8 -0x1.d85992p-8 -0x1.fdffaep-7 -0x1.4d3584p-6
    -0x1.6a2dbcp-6 -0x1.61c4b8p-6 -0x1.404fbep-6 -0x1.110be6p-6
    -0x1.ba2f12p-7 -0x1.55ff2cp-7 -0x1.fb2c64p-8 -0x1.697692p-8
    -0x1.f026bcp-9 -0x1.485c4ap-9 -0x1.a3901p-10 -0x1.02f9p-10
    -0x1.351446p-11 -0x1.64d18ep-12 -0x1.8ea32ap-13 -0x1.af244p-14
    -0x1.c38ce8p-15 -0x1.ca16b4p-16 -0x1.c23e02p-17 -0x1.acd2eep-18
    -0x1.8bd71cp-19 -0x1.622fb2p-20 -0x1.333bf4p-21 -0x1.0264cep-22
""")
GELU_C0 = _hex_table("""
    0x0p+0 0x1.2ff6fp-4 0x1.0152f6p-3 0x1.400788p-3
    0x1.5a3458p-3 0x1.57515p-3 0x1.3f5bfcp-3 0x1.1a0a0cp-3
    0x1.dc462ep-4 0x1.822884p-4 0x1.2d85dap-4 0x1.c65feep-5
    0x1.4ad334p-5 0x1.d1fdap-6 0x1.3db3eep-6 0x1.a39a9cp-7
    0x1.0c832ep-7 0x1.4d1f8ap-8 0x1.90ba22p-9 0x1.d3822cp-10
    0x1.088752p-10 0x1.226a46p-11 0x1.35597p-12 0x1.3fbebcp-13
    0x1.40b6a4p-14 0x1.383068p-15 0x1.26efe4p-16 0x1.0e70ep-17
    0x1.e162fp-19 0x1.9fdc7cp-20 0x1.5cb8b2p-21 0x1.1bdaaap-22
""")
# End of the printed part

EXP2_MIN = np.float32(-126)
GELU_U_MAX = np.float32(31.999998)


def clamp(x: Float, low: np.float32, high: np.float32) -> Float:
    """`x` within [low, high]; NaN becomes `low`."""
    x = np.where(x >= low, x, low)
    return np.where(x <= high, x, high)


def exp2(x: Float) -> Float:
    """2^x for x in [-126, 0], 2^-126 below it and for NaN; relative error at most 1.1e-4."""
    with np.errstate(all="ignore"):
        x = np.where(x >= EXP2_MIN, x, EXP2_MIN)
        n = np.rint(x)
        r = x - n
        p = np.full_like(r, EXP2_C[0])
        for c in EXP2_C[1:]:
            p = p * r + c
        power = ((n.astype(np.int32) + 127) << 23).view(np.float32)
        return cast(Float, p * power)


def gelu(x: Float) -> Float:
    """x * Phi(x), the exact (erf) form; absolute error at most 2e-6."""
    with np.errstate(all="ignore"):
        u = clamp(np.abs(x) * GELU_INV_STEP, np.float32(0), GELU_U_MAX)
        k = u.astype(np.int32)
        t = u - k.astype(np.float32)
        tail = ((GELU_C3[k] * t + GELU_C2[k]) * t + GELU_C1[k]) * t + GELU_C0[k]
        return relu(x) - tail


def relu(x: Float) -> Float:
    """`x` where it is positive, else +0 (NaN too)."""
    return np.where(x > 0, x, np.float32(0))


def lane_sum(x: Float) -> Float:
    """Sum along the last axis in 16 lanes, then a fixed tree: [..., n] -> [...]."""
    n = x.shape[-1]
    with np.errstate(all="ignore"):
        # A lane starts at +0, so it is never -0 and the zeros that fill the last group change nothing.
        lanes = np.zeros((*x.shape[:-1], LANES), np.float32)
        for start in range(0, n - LANES + 1, LANES):
            lanes += x[..., start : start + LANES]
        rest = n % LANES
        if rest:
            lanes[..., :rest] += x[..., n - rest :]
        for width in (8, 4, 2, 1):
            lanes = lanes[..., :width] + lanes[..., width : 2 * width]
        return cast(Float, lanes[..., 0])


def max_from_zero(x: Float) -> Float:
    """Largest of 0 and the last axis, NaN ignored: [..., n] -> [...]."""
    return cast(Float, np.fmax.reduce(x, axis=-1, initial=np.float32(0)))


def max_from_first(x: Float) -> Float:
    """Largest of the last axis, NaN ignored, but NaN where the first is: [..., n] -> [...]."""
    largest = np.fmax.reduce(x, axis=-1)
    return np.where(np.isnan(x[..., 0]), x[..., 0], largest)


def quantize_rows(x: Float) -> tuple[Int8, Float]:
    """Symmetric int8 levels with one scale a row: [..., K] -> levels [..., K], scale [..., 1]; x ~ level * scale."""
    with np.errstate(all="ignore"):
        m = max_from_zero(np.abs(x))[..., None]
        alive = m >= TINY
        inv = cast(Float, INT8_MAX / np.where(alive, m, np.float32(1)))
        levels = np.rint(clamp(x * inv, -INT8_MAX, INT8_MAX)).astype(np.int8)
        return np.where(alive, levels, np.int8(0)), np.where(alive, m / INT8_MAX, np.float32(0))


def softmax(x: Float) -> Float:
    """Probabilities along the last axis, for people to read: exp(x - max) / sum, [..., n] -> [..., n], to 1e-6. No op:
    attention has its own (`exp2`)."""
    with np.errstate(all="ignore"):
        e = np.exp(x.astype(np.float64) - max_from_first(x)[..., None])
        return cast(Float, (e / e.sum(axis=-1, keepdims=True)).astype(np.float32))
