"""Fit the polynomials of `exp2`, `gelu`, `gelu_tanh` and `tanh` (docs/format.md, "Exact arithmetic") and print their
float32 literals.

    python tools/fit_polynomials.py python   the constants of src/lilliput/program/mathfn.py
    python tools/fit_polynomials.py c        the whole of src/lilliput/runtime/c/lil_tables.h

Both print the same float32 values, in hexadecimal, so no digit is lost. A test holds the two files equal to this.
"""

import math
import sys

import numpy as np

EXP2_DEGREE = 3
PIECES = 32


def exp2_coefficients() -> np.ndarray:
    """Degree 3, highest first, for 2^r on |r| <= 1/2; the constant term is exactly 1, so exp2(0) is 1.

    Least squares whose weights follow the error (Lawson's iteration) converges to the least largest relative error.
    """
    r = 0.5 * np.cos(np.linspace(0.0, math.pi, 4001))
    basis = np.stack([r**power for power in range(1, EXP2_DEGREE + 1)], axis=1) / np.exp2(r)[:, None]
    target = (np.exp2(r) - 1.0) / np.exp2(r)
    weights = np.ones_like(r)
    solution: list[float] = []
    for _ in range(200):
        root = np.sqrt(weights)
        solution = np.linalg.lstsq(basis * root[:, None], target * root, rcond=None)[0].tolist()
        weights = weights * (np.abs(basis @ solution - target) + 1e-12)
        weights = weights / weights.sum() * len(weights)
    return np.array([*reversed(solution), 1.0])


def gelu_tail(a: float) -> float:
    """h(a) = a * Phi(-a)."""
    return a * 0.5 * math.erfc(a / math.sqrt(2.0))


def one_minus_tanh(a: float) -> float:
    """h(a) = 1 - tanh(a), without cancellation."""
    return 2.0 / (math.exp(2.0 * a) + 1.0)


def gelu_tanh_tail(a: float) -> float:
    """h(a) = a/2 * (1 - tanh(sqrt(2/pi) * (a + 0.044715 a^3)))."""
    return a * 0.5 * one_minus_tanh(math.sqrt(2.0 / math.pi) * (a + 0.044715 * a**3))


# Where each h is as good as 0.
PIECEWISE = {"GELU": (gelu_tail, 5.5), "GELU_TANH": (gelu_tanh_tail, 5.5), "TANH": (one_minus_tanh, 8.0)}


def piecewise_coefficients(name: str) -> np.ndarray:
    """[4, 32], highest first: each piece interpolates h at Chebyshev nodes stretched so that both ends are nodes.

    Ends as nodes make neighbours meet, and make h(0), so gelu(0) and tanh(0), exact.
    """
    h, end = PIECEWISE[name]
    nodes = np.cos(np.pi * (2.0 * np.arange(4) + 1.0) / 8.0)[::-1] / np.cos(np.pi / 8.0)
    t = (nodes + 1.0) / 2.0
    step = end / PIECES
    columns = [
        np.linalg.solve(np.vander(t, 4), np.array([h(float(a)) for a in (piece + t) * step])) for piece in range(PIECES)
    ]
    table = np.stack(columns, axis=1)
    table[3, 0] = h(0.0)  # without the solver's rounding
    return table


# The coarse gelu of levels: lines, each around a multiple of 1/8.
LINES = {"GELU_LINES": gelu_tail, "GELU_TANH_LINES": gelu_tanh_tail}
LINES_STEPS = 8


def line_coefficients(name: str) -> np.ndarray:
    """[2, 32], slope first: each line meets h at two Chebyshev nodes; the first goes through 0, so gelu(0) is exact."""
    h = LINES[name]
    table = np.zeros((2, PIECES))
    near_zero = np.linspace(1e-3, 0.5, 500) / LINES_STEPS
    slopes = np.array([h(float(a)) for a in near_zero]) / near_zero
    errors = [np.abs((slopes - slope) * near_zero).max() for slope in np.linspace(0.4, 0.5, 2001)]
    table[0, 0] = np.linspace(0.4, 0.5, 2001)[int(np.argmin(errors))]
    for piece in range(1, PIECES):
        low, high = ((piece + side * 0.5 * math.sqrt(0.5)) / LINES_STEPS for side in (-1, 1))
        table[0, piece] = (h(high) - h(low)) / (high - low)
        table[1, piece] = h(low) - table[0, piece] * low
    return table


def constants() -> dict[str, np.ndarray]:
    """Every literal by name, rounded to float32; scalars have shape [1]."""
    values = {"EXP2_C": exp2_coefficients()}
    for name, (_, end) in PIECEWISE.items():
        values[f"{name}_INV_STEP"] = np.array([PIECES / end])
        values |= {f"{name}_C{3 - i}": row for i, row in enumerate(piecewise_coefficients(name))}
    for name in LINES:
        values |= {f"{name}_C{1 - i}": row for i, row in enumerate(line_coefficients(name))}
    return {name: value.astype(np.float32) for name, value in values.items()}


def hex_literal(value: float) -> str:
    """Shortest hexadecimal form of a float32: 0x1.62e43p-1."""
    mantissa, exponent = float(value).hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}p{exponent}"


def _rows(items: list[str], indent: str) -> str:
    return "\n".join(indent + ", ".join(items[start : start + 4]) + "," for start in range(0, len(items), 4))


def python_text() -> str:
    """Assignments for mathfn.py: scalars as `_hex("...")`, tables as `_hex_table("...")`."""
    lines = []
    for name, values in constants().items():
        words = [hex_literal(float(value)) for value in values]
        if len(words) == 1:
            lines.append(f'{name} = _hex("{words[0]}")')
        else:
            body = "\n".join("    " + " ".join(words[start : start + 4]) for start in range(0, len(words), 4))
            lines.append(f'{name} = _hex_table("""\n{body}\n""")')
    return "\n".join(lines) + "\n"


def c_text() -> str:
    """The C header."""
    parts = [
        '/* Coefficients of exp2, gelu, gelu_tanh and tanh (docs/format.md, "Exact arithmetic"): the float32 values of',
        "   src/lilliput/program/mathfn.py. Generated by `python tools/fit_polynomials.py c`; do not edit. */",
        "#ifndef LIL_TABLES_H",
        "#define LIL_TABLES_H",
        "",
    ]
    exponential = ", ".join(f"{hex_literal(float(c))}f" for c in constants()["EXP2_C"])
    parts += [
        f"static const float LIL_EXP2_C[4] = {{{exponential}}}; /* highest power first */",
        "",
        "typedef struct lil_cubics { /* a piecewise cubic */",
        "    float inverse_step;",
        f"    float c3[{PIECES}], c2[{PIECES}], c1[{PIECES}], c0[{PIECES}]; /* c3 is the highest power's */",
        f"    float c[{PIECES}][4]; /* the same, a piece's together */",
        "} lil_cubics;",
    ]
    for name in PIECEWISE:
        table, step = piecewise_coefficients(name).astype(np.float32), constants()[f"{name}_INV_STEP"][0]
        fields = [f"    .inverse_step = {hex_literal(float(step))}f,"]
        for i, row in enumerate(table):
            words = [f"{hex_literal(float(c))}f" for c in row]
            fields.append(f"    .c{3 - i} = {{\n{_rows(words, '        ')}\n    }},")
        pieces = [f"{{{', '.join(f'{hex_literal(float(c))}f' for c in piece)}}}" for piece in table.T]
        fields.append("    .c = {\n" + "\n".join(f"        {piece}," for piece in pieces) + "\n    },")
        parts.append(f"static const lil_cubics LIL_{name} = {{\n" + "\n".join(fields) + "\n};")
    end = np.nextafter(np.float32((PIECES - 0.5) / LINES_STEPS), np.float32(0.0))
    parts += [
        "",
        "typedef struct lil_lines { /* piecewise linear: the line around each multiple of 1 / LIL_LINES_STEPS */",
        f"    float c1[{PIECES}], c0[{PIECES}];",
        "} lil_lines;",
        f"#define LIL_LINES_STEPS {float(LINES_STEPS)}f",
        f"#define LIL_LINES_END {hex_literal(float(end))}f /* the largest that is nearest to the last one */",
    ]
    for name in LINES:
        fields = []
        for i, row in enumerate(line_coefficients(name).astype(np.float32)):
            words = [f"{hex_literal(float(c))}f" for c in row]
            fields.append(f"    .c{1 - i} = {{\n{_rows(words, '        ')}\n    }},")
        parts.append(f"static const lil_lines LIL_{name} = {{\n" + "\n".join(fields) + "\n};")
    return "\n".join([*parts, "", "#endif", ""])


if __name__ == "__main__":
    texts = {"python": python_text, "c": c_text}
    if len(sys.argv) != 2 or sys.argv[1] not in texts:
        sys.exit("usage: python tools/fit_polynomials.py {python|c}")
    sys.stdout.write(texts[sys.argv[1]]())
