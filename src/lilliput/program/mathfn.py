"""The float32 functions of docs/format.md, "Exact arithmetic", in numpy: every step is one rounding to binary32.

Each function takes and gives float32 arrays and works along the last axis where it needs one. Overflow, infinities and
NaN are defined behaviour, so the floating-point flags are silenced. tools/fit_polynomials.py prints the coefficients.
"""

import math
from typing import cast

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Int8 = NDArray[np.int8]

LANES = 16
TINY = np.float32(1e-30)  # rows whose largest magnitude is below this are zero
INT8_MAX = np.float32(127)
LOG2E = math.log2(math.e)  # from logits to those of a softmax to base 2


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
GELU_TANH_INV_STEP = _hex("0x1.745d18p+2")
GELU_TANH_C3 = _hex_table("""
    0x1.e570f8p-14 0x1.5bfe52p-12 0x1.08c218p-11 0x1.42cac6p-11
    0x1.57f54p-11 0x1.4a61eap-11 0x1.2145ap-11 0x1.cd86e4p-12
    0x1.4b077ap-12 0x1.9acdacp-13 0x1.868dacp-14 0x1.d6efap-17
    -0x1.4dca94p-15 -0x1.27e358p-14 -0x1.5a974ap-14 -0x1.5524aep-14
    -0x1.2d127ep-14 -0x1.e9220ep-15 -0x1.724944p-15 -0x1.06dd92p-15
    -0x1.5f0afep-16 -0x1.b97e7p-17 -0x1.058036p-17 -0x1.23a588p-18
    -0x1.31f44ap-19 -0x1.2d8d68p-20 -0x1.16dcp-21 -0x1.e32d2cp-23
    -0x1.8789ap-24 -0x1.28465cp-25 -0x1.a1f99cp-27 -0x1.125a62p-28
""")
GELU_TANH_C2 = _hex_table("""
    -0x1.84750ep-7 -0x1.78dc56p-7 -0x1.57d75p-7 -0x1.25b3cep-7
    -0x1.d156eap-8 -0x1.4f799ep-8 -0x1.a5e7fcp-9 -0x1.9895d4p-10
    -0x1.f1fdbep-13 0x1.72ab22p-11 0x1.5225a6p-10 0x1.99e962p-10
    0x1.a384fp-10 0x1.8300c4p-10 0x1.4a97fap-10 0x1.08fcd4p-10
    0x1.915d2ep-11 0x1.20386ap-11 0x1.89242ap-12 0x1.fd8402p-13
    0x1.399662p-13 0x1.6e4a68p-14 0x1.9580e8p-15 0x1.a8d89ap-16
    0x1.a4918ap-17 0x1.88b4p-18 0x1.5940acp-19 0x1.1d44c4p-20
    0x1.ba3574p-22 0x1.40e59ep-23 0x1.b3327p-25 0x1.1337c6p-26
""")
GELU_TANH_C1 = _hex_table("""
    0x1.600c82p-4 0x1.0072aep-4 0x1.4cc496p-5 0x1.5ab4p-6
    0x1.4d5342p-8 -0x1.d48abp-8 -0x1.fc1014p-7 -0x1.4c93a6p-6
    -0x1.6a39d2p-6 -0x1.62b146p-6 -0x1.42124ap-6 -0x1.135c4p-6
    -0x1.bf0bc8p-7 -0x1.5a2ec8p-7 -0x1.006898p-7 -0x1.6bc25cp-8
    -0x1.ee62b2p-9 -0x1.41bf72p-9 -0x1.90bfbcp-10 -0x1.dd1792p-11
    -0x1.0f0e82p-11 -0x1.258088p-12 -0x1.2e531cp-13 -0x1.27b3d4p-14
    -0x1.121dbap-15 -0x1.e0bae8p-17 -0x1.8df5b4p-18 -0x1.36647p-19
    -0x1.c74596p-21 -0x1.394f9ep-22 -0x1.93d40ap-24 -0x1.e66b28p-26
""")
GELU_TANH_C0 = _hex_table("""
    0x0p+0 0x1.2ff73cp-4 0x1.01552ep-3 0x1.4011ap-3
    0x1.5a4faep-3 0x1.578786p-3 0x1.3fb1c6p-3 0x1.1a7a6ap-3
    0x1.dd3b1cp-4 0x1.82febp-4 0x1.2e051ap-4 0x1.c65584p-5
    0x1.49942p-5 0x1.cd33c4p-6 0x1.372488p-6 0x1.947e4ap-7
    0x1.fa24dcp-8 0x1.306adep-8 0x1.5f7fdcp-9 0x1.84f6bap-10
    0x1.9bc90ap-11 0x1.a04f92p-12 0x1.912b5ep-13 0x1.6fc0f2p-14
    0x1.4011d8p-15 0x1.07f276p-16 0x1.9ba4b2p-18 0x1.2ee7a8p-19
    0x1.a3cb2p-21 0x1.115e1ep-22 0x1.4de208p-24 0x1.7da002p-26
""")
TANH_INV_STEP = _hex("0x1p+2")
TANH_C3 = _hex_table("""
    0x1.3e4c4ep-8 0x1.6d0ff4p-9 0x1.348c62p-12 -0x1.4aaefp-10
    -0x1.c42686p-10 -0x1.972166p-10 -0x1.33f9e2p-10 -0x1.a90cbap-11
    -0x1.166058p-11 -0x1.619c02p-12 -0x1.b90806p-13 -0x1.100712p-13
    -0x1.4d5b36p-14 -0x1.96e0dcp-15 -0x1.ef69c4p-16 -0x1.2d29e2p-16
    -0x1.6dd4dp-17 -0x1.bc252p-18 -0x1.0d8602p-18 -0x1.470c6cp-19
    -0x1.8ccdb4p-20 -0x1.e166b4p-21 -0x1.240128p-21 -0x1.623beap-22
    -0x1.adb7eap-23 -0x1.04a43p-23 -0x1.3c2d48p-24 -0x1.7f8b48p-25
    -0x1.d1439ap-26 -0x1.1a329p-26 -0x1.5652c4p-27 -0x1.9f426cp-28
""")
TANH_C2 = _hex_table("""
    0x1.219bf4p-12 0x1.f081cep-7 0x1.7f6c2ep-6 0x1.898376p-6
    0x1.48422ep-6 0x1.e42f8ap-7 0x1.4b14acp-7 0x1.b02b3ep-8
    0x1.121b7cp-8 0x1.55ae1ap-9 0x1.a564p-10 0x1.022a9cp-10
    0x1.3b1648p-11 0x1.7fa302p-12 0x1.d26bb6p-13 0x1.1b48b4p-13
    0x1.57ecc4p-14 0x1.a1693ap-15 0x1.fa7fc6p-16 0x1.33438ep-16
    0x1.74c588p-17 0x1.c439bap-18 0x1.124cc6p-18 0x1.4cc03cp-19
    0x1.93a742p-20 0x1.e9a928p-21 0x1.28fef6p-21 0x1.684686p-22
    0x1.b50982p-23 0x1.0913a6p-23 0x1.418dfap-24 0x1.8610cep-25
""")
TANH_C1 = _hex_table("""
    -0x1.000d8ep-2 -0x1.e18eeep-3 -0x1.92e64ap-3 -0x1.3190c4p-3
    -0x1.ae1474p-4 -0x1.1f144ap-4 -0x1.71eb7cp-5 -0x1.d1e3f6p-6
    -0x1.212df8p-6 -0x1.63c98ep-7 -0x1.b35466p-8 -0x1.096e2p-8
    -0x1.430304p-9 -0x1.8897c6p-10 -0x1.dcccaep-11 -0x1.216664p-11
    -0x1.5f363ep-12 -0x1.aa2748p-13 -0x1.02842ep-13 -0x1.39a05ep-14
    -0x1.7c786cp-15 -0x1.cd8ce2p-16 -0x1.17f352p-16 -0x1.5399fep-17
    -0x1.9bf5f2p-18 -0x1.f3bc6ep-19 -0x1.2f1b2ap-19 -0x1.6fafdcp-20
    -0x1.be06fep-21 -0x1.0e8788p-21 -0x1.482b3cp-22 -0x1.8e16cep-23
""")
TANH_C0 = _hex_table("""
    0x1p+0 0x1.829a06p-1 0x1.136562p-1 0x1.759b84p-2
    0x1.e84152p-3 0x1.36b712p-3 0x1.848344p-4 0x1.e04068p-5
    0x1.26afa2p-5 0x1.680528p-6 0x1.b69f68p-7 0x1.0abd94p-7
    0x1.441778p-8 0x1.8986a2p-9 0x1.dda738p-10 0x1.21d0b2p-10
    0x1.5fa3dep-11 0x1.aa9e06p-12 0x1.02c6f6p-12 0x1.39ed86p-13
    0x1.7cd32ep-14 0x1.cdf8e4p-15 0x1.18341p-15 0x1.53e7f6p-16
    0x1.9c541ep-17 0x1.f42e5ap-18 0x1.2f6026p-18 0x1.700376p-19
    0x1.be6c58p-20 0x1.0ec4fap-20 0x1.4875c4p-21 0x1.8e7134p-22
""")
GELU_LINES_C1 = _hex_table("""
    0x1.eadabap-2 0x1.9a776ep-2 0x1.381084p-2 0x1.b76b12p-3
    0x1.0fcf56p-3 0x1.f4be1ep-5 0x1.0d3326p-10 -0x1.811c68p-5
    -0x1.544ae4p-4 -0x1.b9c5bcp-4 -0x1.f5ae1p-4 -0x1.070634p-3
    -0x1.04d48ap-3 -0x1.ef7adcp-4 -0x1.c62a28p-4 -0x1.93b11p-4
    -0x1.5d1bfcp-4 -0x1.266a36p-4 -0x1.e515a2p-5 -0x1.86df58p-5
    -0x1.345f7p-5 -0x1.dcc606p-6 -0x1.695fc8p-6 -0x1.0cb294p-6
    -0x1.8824e2p-7 -0x1.18edb4p-7 -0x1.8b474cp-8 -0x1.1128f4p-8
    -0x1.72edeap-9 -0x1.eef7ap-10 -0x1.4492dap-10 -0x1.a26e16p-11
""")
GELU_LINES_C0 = _hex_table("""
    0x0p+0 0x1.628e94p-8 0x1.7f752ep-6 0x1.a64f2ap-5
    0x1.659c6ep-4 0x1.052a1p-3 0x1.59a812p-3 0x1.a97628p-3
    0x1.ee969p-3 0x1.12312ap-2 0x1.23ed38p-2 0x1.2be16ep-2
    0x1.2a4552p-2 0x1.200524p-2 0x1.0e931ap-2 0x1.ef642cp-3
    0x1.ba827ap-3 0x1.821c3p-3 0x1.49627ep-3 0x1.12eecp-3
    0x1.c159d8p-4 0x1.67b6ccp-4 0x1.1a360ep-4 0x1.b226ep-5
    0x1.47880ep-5 0x1.e4d83ep-6 0x1.602adap-6 0x1.f62d8ep-7
    0x1.5f878cp-7 0x1.e34986p-8 0x1.464a3p-8 0x1.b0cc04p-9
""")
GELU_TANH_LINES_C1 = _hex_table("""
    0x1.eadabap-2 0x1.9a782cp-2 0x1.3815b2p-2 0x1.b78aacp-3
    0x1.10112cp-3 0x1.f67044p-5 0x1.586c4p-10 -0x1.7e4e96p-5
    -0x1.52dbdcp-4 -0x1.b891f6p-4 -0x1.f4fe4p-4 -0x1.070fccp-3
    -0x1.055344p-3 -0x1.f1682ep-4 -0x1.c8e83ap-4 -0x1.970074p-4
    -0x1.60a7ap-4 -0x1.29d5c2p-4 -0x1.eb02e2p-5 -0x1.8b609ep-5
    -0x1.372928p-5 -0x1.dec8ap-6 -0x1.681944p-6 -0x1.08b992p-6
    -0x1.7c554ep-7 -0x1.0adea6p-7 -0x1.6da394p-8 -0x1.e8d456p-9
    -0x1.3ea86cp-9 -0x1.94e3eap-10 -0x1.f50ad2p-11 -0x1.2db84ep-11
""")
GELU_TANH_LINES_C0 = _hex_table("""
    0x0p+0 0x1.628afap-8 0x1.7f6686p-6 0x1.a62d02p-5
    0x1.656d46p-4 0x1.04fa72p-3 0x1.595bacp-3 0x1.a91248p-3
    0x1.ee2f0cp-3 0x1.120d3ep-2 0x1.23f09p-2 0x1.2c24d6p-2
    0x1.2adcfp-2 0x1.20fa7p-2 0x1.0fe066p-2 0x1.f28244p-3
    0x1.bddab4p-3 0x1.855314p-3 0x1.4c194ep-3 0x1.14d3p-3
    0x1.c30a86p-4 0x1.671eb6p-4 0x1.1769p-4 0x1.a8c23ap-5
    0x1.3b4d3cp-5 0x1.c8f278p-6 0x1.430f86p-6 0x1.bd7372p-7
    0x1.2b4a88p-7 0x1.87b29cp-8 0x1.f2f274p-9 0x1.3515bcp-9
""")
# End of the printed part

EXP2_MIN = np.float32(-126)
PIECE_MAX = np.float32(31.999998)
LINES_STEPS = np.float32(8)
LINES_END = np.nextafter(np.float32(3.9375), np.float32(0))


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


def _piecewise(x: Float, inverse_step: np.float32, c3: Float, c2: Float, c1: Float, c0: Float) -> Float:
    """The piecewise cubic `h(|x|)`."""
    with np.errstate(all="ignore"):
        u = clamp(np.abs(x) * inverse_step, np.float32(0), PIECE_MAX)
        k = u.astype(np.int32)
        t = u - k.astype(np.float32)
        return cast(Float, ((c3[k] * t + c2[k]) * t + c1[k]) * t + c0[k])


def gelu(x: Float) -> Float:
    """x * Phi(x), the exact (erf) form; absolute error at most 2e-6."""
    return relu(x) - _piecewise(x, GELU_INV_STEP, GELU_C3, GELU_C2, GELU_C1, GELU_C0)


def gelu_tanh(x: Float) -> Float:
    """x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))); absolute error at most 2e-6."""
    return relu(x) - _piecewise(x, GELU_TANH_INV_STEP, GELU_TANH_C3, GELU_TANH_C2, GELU_TANH_C1, GELU_TANH_C0)


def _coarse(x: Float, c1: Float, c0: Float) -> Float:
    with np.errstate(all="ignore"):
        a = np.abs(x)
        a = np.where(a <= LINES_END, a, LINES_END)
        k = np.rint(a * LINES_STEPS).astype(np.int32)
        return cast(Float, relu(x) - (c1[k] * a + c0[k]))


def coarse_gelu(x: Float) -> Float:
    """`gelu` where its levels are all that is wanted; absolute error at most 8e-4."""
    return _coarse(x, GELU_LINES_C1, GELU_LINES_C0)


def coarse_gelu_tanh(x: Float) -> Float:
    """The same of `gelu_tanh`."""
    return _coarse(x, GELU_TANH_LINES_C1, GELU_TANH_LINES_C0)


def tanh(x: Float) -> Float:
    """Absolute error at most 1e-5; NaN gives +0."""
    y = np.float32(1) - _piecewise(x, TANH_INV_STEP, TANH_C3, TANH_C2, TANH_C1, TANH_C0)
    zero = np.float32(0)
    return np.where(x >= 0, y, zero) - np.where(x <= 0, y, zero)


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


def largest_level(bits: int) -> np.float32:
    """Of symmetric levels of `bits` bits: 127 of 8 (or of 0, as files write it), 31 of 6, 7 of 4."""
    return np.float32(2 ** ((bits or 8) - 1) - 1)


def quantize_rows(x: Float, limit: np.float32 = INT8_MAX) -> tuple[Int8, Float]:
    """Symmetric int8 levels, up to `limit`, with one scale a row: [..., K] -> levels [..., K], scale [..., 1]; x ~
    level * scale."""
    with np.errstate(all="ignore"):
        m = max_from_zero(np.abs(x))[..., None]
        alive = m >= TINY
        inv = cast(Float, limit / np.where(alive, m, np.float32(1)))
        levels = np.rint(clamp(x * inv, -limit, limit)).astype(np.int8)
        return np.where(alive, levels, np.int8(0)), np.where(alive, m / limit, np.float32(0))


STEPS = 32  # of table attention's weights, a factor of 2


def _weights() -> NDArray[np.int8]:
    table = np.rint(127.0 * np.exp2(-np.arange(256) / STEPS)).astype(np.int8)
    table[255] = 0
    return table


WEIGHTS = _weights()  # of table attention: int8 [256]


def quantize_all(x: Float) -> tuple[Int8, Float]:
    """Symmetric int8 levels with one scale for the last two axes: [..., T, K] -> levels [..., T, K], scale [...]."""
    shape = x.shape
    levels, scale = quantize_rows(np.ascontiguousarray(x).reshape(*shape[:-2], shape[-2] * shape[-1]))
    return levels.reshape(shape), scale[..., 0]


def softmax(x: Float) -> Float:
    """Probabilities along the last axis, for people to read: exp(x - max) / sum, [..., n] -> [..., n], to 1e-6. No op:
    attention has its own (`exp2`)."""
    with np.errstate(all="ignore"):
        e = np.exp(x.astype(np.float64) - max_from_first(x)[..., None])
        return cast(Float, (e / e.sum(axis=-1, keepdims=True)).astype(np.float32))
