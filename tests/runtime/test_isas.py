"""Every kernel equals its definition with `==` on 10,000 random cases: each instruction set's the scalar one (in C:
c/cases.c), and the scalar one the numpy reference (here, through ctypes)."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lilliput.program import reference
from lilliput.program.cost import PRODUCTS
from lilliput.program.formats import FORMAT_IDS, LAYOUT_IDS, WEIGHT_FORMATS, pack, pack_bf16, round_bf16, round_up
from lilliput.program.op_functions import COARSE_ACTIVATIONS
from lilliput.program.op_shapes import LEVEL_BITS, Operands, Shape
from lilliput.program.ops import ACTIVATIONS, OPS, TensorSlot
from lilliput.runtime import isas

CASES = 10_000  # of each op
SANITIZED_CASES = 400
BATCH = 50  # cases that share shapes, attributes and tensors
KNOWN = 23  # token ids
ATTENTIONS = ("attention", "table_attention")

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "src" / "lilliput" / "runtime" / "c"
CASES_SOURCE = Path(__file__).parent / "c" / "cases.c"
FLAGS = ("-std=c11", "-g1", "-ffp-contract=off", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", f"-I{CORE}")
SANITIZE = ("-O1", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
OTHERS = [isa for isa in isas() if isa != "scalar"]

Rng = np.random.Generator
Array = NDArray[Any]


def compile_core(target: Path, *options: str | Path) -> Path:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler")
    command = [compiler, *FLAGS, *map(str, options), "-lm", "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return target


def run_cases(program: Path, isa: str, count: int, seed: int) -> None:
    """All kinds; what differs is printed with the command that runs that case alone."""
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [str(program), isa, str(count), str(seed)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(result.stdout.splitlines()) == len(OPS)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core as a shared library."""
    target = tmp_path_factory.mktemp("core") / "libcore.so"
    return compile_core(target, "-O2", "-shared", "-fPIC", *sorted(CORE.glob("*.c")))


@pytest.fixture(scope="session")
def cases(library: Path) -> Path:
    return compile_core(library.with_name("cases"), "-O2", CASES_SOURCE, library, f"-Wl,-rpath,{library.parent}")


@pytest.fixture(scope="session")
def sanitized_cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("core") / "sanitized_cases"
    return compile_core(target, *SANITIZE, CASES_SOURCE, *sorted(CORE.glob("*.c")))


@pytest.mark.parametrize("isa", OTHERS)
def test_instruction_set_equals_scalar(cases: Path, isa: str) -> None:
    run_cases(cases, isa, CASES, seed=1)


@pytest.mark.parametrize("isa", OTHERS)
def test_instruction_set_stays_in_its_memory(sanitized_cases: Path, isa: str) -> None:
    run_cases(sanitized_cases, isa, SANITIZED_CASES, seed=2)


def test_cases_refuse_what_is_not_there(cases: Path) -> None:
    absent = "neon" if "neon" not in isas() else "avx512"
    for isa, status in (("mmx", 2), (absent, 3), ("scalar", 0)):
        assert subprocess.run([cases, isa, "1", "1"], capture_output=True, check=False).returncode == status


# The scalar kernels against the reference. The structures are those of lil_kernels.h.


class Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("rows", ctypes.c_size_t), ("cols", ctypes.c_size_t))


class Constant(ctypes.Structure):
    _fields_ = (
        *Buffer._fields_,
        ("format", ctypes.c_uint16),
        ("layout", ctypes.c_uint16),
        ("available", ctypes.c_size_t),
    )


class Call(ctypes.Structure):
    _fields_ = (("inputs", Buffer * 3), ("outputs", Buffer * 2), ("tensors", Constant * 4), ("a", ctypes.c_uint32 * 5))


class Part(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_size_t), ("end", ctypes.c_size_t), ("scratch", ctypes.c_void_p))


@pytest.fixture(scope="session")
def core(library: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(library))


SPECIALS = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 3.4e38, -3.4e38, 1e-45, -1e-45, 1e-30, 9.9e-31, 1], np.float32)


def _unit(rng: Rng, shape: tuple[int, ...]) -> Array:
    return rng.uniform(-1, 1, shape)


def _any_bits(rng: Rng, shape: tuple[int, ...]) -> Array:
    bits = rng.integers(0, 2**32, shape, dtype=np.uint32)
    is_nan = bits << 1 > 0xFF000000
    return (
        np.where(is_nan, bits | 0x400000, bits).astype(np.uint32).view(np.float32)
    )  # arithmetic gives quiet NaNs only


def _broken(rng: Rng, shape: tuple[int, ...]) -> Array:
    return np.where(rng.random(shape) < 0.1, rng.choice(SPECIALS, shape), _unit(rng, shape))


def _halves(rng: Rng, shape: tuple[int, ...]) -> Array:
    values = rng.integers(-126, 127, shape) + 0.5
    values[..., 0] = 127
    return values


# Values of [cases, rows, cols]; each case is of one class, or each row of one.
CLASSES: tuple[Callable[[Rng, tuple[int, ...]], Array], ...] = (
    lambda rng, shape: 3 * _unit(rng, shape),
    lambda rng, shape: np.zeros(shape),
    lambda rng, shape: np.full(shape, -0.0),
    lambda rng, shape: np.broadcast_to(_unit(rng, (*shape[:-1], 1)), shape),
    lambda rng, shape: 2e-30 * _unit(rng, shape),
    lambda rng, shape: 1e-38 * _unit(rng, shape),
    lambda rng, shape: 3e38 * _unit(rng, shape),
    lambda rng, shape: 2.0 ** rng.uniform(-149, 127, (*shape[:-1], 1)) * _unit(rng, shape),
    _any_bits,
    _broken,
    _halves,
)


def some_floats(rng: Rng, cases: int, rows: int, cols: int) -> Array:
    """float32 [cases, rows, cols]; half of the cases are plain."""
    which = np.where(rng.random((cases, 1)) < 0.5, 0, rng.integers(0, len(CLASSES), (cases, 1)))
    by_row = rng.random((cases, 1)) < 0.3
    which = np.where(by_row, rng.integers(0, len(CLASSES), (cases, rows)), which)
    x = np.empty((cases, rows, cols), np.float32)
    for number, make in enumerate(CLASSES):
        chosen = which == number
        x[chosen] = make(rng, (int(chosen.sum()), cols))
    return x


def some_constants(rng: Rng, slot: TensorSlot, format: str, shape: Shape) -> Array:
    """Values of a tensor: levels, or finite floats of its format."""
    if format in WEIGHT_FORMATS:
        grid = WEIGHT_FORMATS[format].grid
        levels = rng.choice(grid if rng.random() < 0.7 else grid[[0, -1]], shape)
        if rng.random() < 0.5:  # zero blocks, wherever they begin
            zero = rng.random((shape.rows // 8 + 1, shape.cols // 8 + 1)) < rng.random()
            levels[np.kron(zero, np.ones((8, 8), bool))[: shape.rows, : shape.cols]] = 0
        return levels
    values = some_floats(rng, 1, *shape)[0]
    values = values if format == "f32" else round_bf16(values)
    values = np.where(np.isfinite(values), values, np.float32(1))
    return np.abs(values) if slot.is_scale else values


def size(rng: Rng, limit: int) -> int:
    edges = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65]
    return min(limit, int(rng.choice(edges) if rng.random() < 0.5 else rng.integers(1, 41)))


Shapes = tuple[list[Shape], list[Shape], dict[str, int | float]]  # inputs, tensors, attributes


def some_bits(rng: Rng) -> int:
    """Of levels, as files write it."""
    return int(rng.choice(LEVEL_BITS))


def shapes_of(rng: Rng, kind: str) -> Shapes:
    """Random shapes and attributes that the op's rule allows."""
    rows, cols = size(rng, 40), size(rng, 70)
    x, row = Shape(rows, cols), Shape(1, cols)
    if kind in PRODUCTS:
        depth = size(rng, 70) if rng.random() < 0.9 else int(rng.integers(1, 600))
        per_output = Shape(1, cols)
        inputs = [Shape(rows, round_up(depth, 8)), Shape(rows, 1), x]
        activation: dict[str, int | float] = {"activation": int(rng.integers(len(ACTIVATIONS)))}
        tensors = [Shape(cols, depth), per_output, per_output]
        if kind == "linear_add":
            return inputs, tensors, {}
        if kind == "linear_levels":
            coarse = int(rng.integers(len(COARSE_ACTIVATIONS)))
            return inputs[:2], [*tensors, per_output], {"activation": coarse, "bits": some_bits(rng)}
        return inputs[:2], tensors, activation
    if kind in ATTENTIONS:
        steps = 32 if kind == "table_attention" else 1  # an octave
        heads, width = int(rng.integers(1, 4)), size(rng, 40)
        attributes: dict[str, int | float] = {"num_heads": heads, "head_dim": width}
        attributes["logit_scale"] = float(
            np.float32(rng.choice([steps * width**-0.5, steps * 2 / width, -3, 0, 3e38], p=[0.4, 0.3, 0.1, 0.1, 0.1]))
        )
        attributes["num_queries"] = int(rng.integers(rows)) if rng.random() < 0.3 else 0
        return [Shape(rows, 3 * heads * width)], [], attributes
    if kind == "unfold":
        kernel = int(rng.integers(1, 5))
        height, width = rng.integers(kernel, kernel + 8, 2).tolist()
        unfold: dict[str, int | float] = {"height": height, "width": width, "kernel": kernel}
        unfold |= {"stride": int(rng.integers(1, kernel + 2)), "padding": int(rng.integers(kernel))}
        return [Shape(height * width, min(cols, 9))], [], unfold
    if kind == "layer_norm":
        return [x], [row, row], {"eps": float(np.float32(rng.choice([1e-6, 1e-5, 1e-45, 3e38])))}
    simple: dict[str, Shapes] = {
        "normalize": ([x], [row, row], {}),
        "quantize": ([x], [], {"bits": some_bits(rng)}),
        "prepend_token": ([x], [row, Shape(1, 1)], {}),
        "add_positions": ([x], [x, Shape(1, rows)], {}),
        "select_row": ([x], [], {"row": int(rng.integers(rows))}),
        "mean_rows": ([x], [], {}),
        "embed_tokens": ([Shape(rows, 1)], [Shape(KNOWN, cols), Shape(1, KNOWN)], {}),
        "normalize_rows": ([x], [], {}),
        "scale_shift": ([x], [row, row], {}),
        "neighbors": ([x], [], {}),
        "concat": ([x, Shape(rows, size(rng, 40))], [], {}),
    }
    return simple[kind]


def some_input(rng: Rng, kind: str, number: int, dtype: str, shape: Shape) -> Array:
    """[BATCH, rows, cols]"""
    if dtype == "u8":
        return rng.integers(0, 256, (BATCH, *shape), dtype=np.uint8)
    if dtype == "u32":
        return rng.integers(0, KNOWN, (BATCH, *shape), dtype=np.uint32)
    if dtype == "i8":
        levels = rng.integers(-127, 128, (BATCH, *shape), dtype=np.int8)
        levels[::5] = np.where(levels[::5] < 0, -127, 127)
        levels[1::10] = 127
        return levels
    x = some_floats(rng, BATCH, *shape)
    if kind.startswith("linear") and number == 1 and rng.random() < 0.7:  # usual scales
        x = rng.uniform(0, 0.05, x.shape).astype(np.float32)
    return x


def stored(format: str, layout: str, values: Array) -> Array:
    """The tensor's bytes in a file."""
    if format in WEIGHT_FORMATS:
        return pack(values, format, layout)
    return pack_bf16(values) if format == "bf16" else np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def attribute_bits(values: dict[str, int | float]) -> list[int]:
    return [int(np.float32(v).view(np.uint32)) if isinstance(v, float) else v for v in values.values()]


def compare_batch(core: ctypes.CDLL, rng: Rng, kind: str) -> None:
    """BATCH cases of one shape: each its own inputs."""
    spec = OPS[kind]
    in_shapes, tensor_shapes, attributes = shapes_of(rng, kind)
    inputs = [
        some_input(rng, kind, number, slot.dtype, shape)
        for number, (slot, shape) in enumerate(zip(spec.inputs, in_shapes, strict=True))
    ]
    if kind in PRODUCTS and rng.random() < 0.3:  # no scales
        in_shapes[1], inputs[1] = in_shapes[0], inputs[0]
    formats = [str(rng.choice(slot.formats)) for slot in spec.tensors]
    tensors = [some_constants(rng, *what) for what in zip(spec.tensors, formats, tensor_shapes, strict=True)]
    wanted = reference.apply(kind, inputs, tensors, attributes)

    has_scales = len(inputs) == 1 or inputs[1] is not inputs[0]
    shapes = spec.shapes(Operands(tuple(in_shapes), tuple(tensor_shapes), attributes, has_scales=has_scales))
    dtypes = {"i8": np.int8, "u8": np.uint8, "f32": np.float32}
    outputs = [np.full(shape, 85, dtypes[slot.dtype]) for slot, shape in zip(spec.outputs, shapes, strict=True)]
    layouts = [str(rng.choice(slot.layouts)) for slot in spec.tensors]
    files = [stored(*what) for what in zip(formats, layouts, tensors, strict=True)]
    call = Call(a=tuple(attribute_bits(attributes)))
    for number, output in enumerate(outputs):
        call.outputs[number] = Buffer(output.ctypes.data, *output.shape)
    for number, (file, shape, format, layout) in enumerate(zip(files, tensor_shapes, formats, layouts, strict=True)):
        call.tensors[number] = Constant(file.ctypes.data, *shape, FORMAT_IDS[format], LAYOUT_IDS[layout], file.size)
    by_rows = kind not in (*ATTENTIONS, "prepend_token", "select_row", "mean_rows")
    end = shapes[0].rows if by_rows else int(attributes.get("num_heads", 1))
    part = Part(0, end, outputs[-1].ctypes.data if spec.outputs[-1].scratch else None)
    kernel = getattr(core, f"lil_op_{kind}")
    for case in range(BATCH):
        for number, x in enumerate(inputs):
            call.inputs[number] = Buffer(x[case].ctypes.data, *x.shape[1:])
        kernel(ctypes.byref(call), ctypes.byref(part))
        for number, right in enumerate(wanted):
            got, must = outputs[number], right[case]
            same = got.view(np.uint8 if got.dtype != np.float32 else np.uint32) == must.view(
                np.uint8 if got.dtype != np.float32 else np.uint32
            )
            same |= np.isnan(got) & np.isnan(must)
            assert same.all(), (
                f"{kind} {in_shapes} {tensor_shapes} {formats} {layouts} {attributes}, case {case}, output {number}: "
                f"{(~same).sum()} of {same.size} differ; first {got[~same][0]!r}, not {must[~same][0]!r}"
            )


@pytest.mark.parametrize("kind", OPS)
def test_scalar_equals_reference(core: ctypes.CDLL, kind: str) -> None:
    rng = np.random.default_rng([OPS[kind].id, 7])
    for _ in range(CASES // BATCH):
        compare_batch(core, rng, kind)
