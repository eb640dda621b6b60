"""A session's threads and instruction sets: whatever they are, and whoever shares it, the same bits."""

import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.runtime.conftest import random_images

import lilliput
from lilliput import artifact
from lilliput.errors import FailureError, InputError
from lilliput.program import reference
from lilliput.program.builder import ProgramBuilder, with_golden
from lilliput.program.formats import WEIGHT_FORMATS, round_bf16
from lilliput.program.program import Program
from lilliput.runtime import isas

if TYPE_CHECKING:
    pass


def vit_program(seed: int = 0) -> Program:
    """A ViT for 12 x 12 colour images: 9 patches and a class token, two blocks of 3 heads, each format of weights."""
    rng = np.random.default_rng(seed)
    b = ProgramBuilder()

    def bf16(name: str, values: NDArray[np.floating[Any]]) -> int:
        return b.tensor(name, role="scale", format="bf16", values=round_bf16(values.astype(np.float32)))

    def codes(name: str, format: str, layout: str, rows: int, cols: int) -> int:
        values = rng.choice(WEIGHT_FORMATS[format].grid, (rows, cols))
        values[rng.random((rows, cols)) < 0.6] = 0
        return b.tensor(name, role="weight", format=format, layout=layout, values=values)

    def linear(x: int, cols: int, rows: int, format: str, residual: int | None = None, gelu: bool = False) -> int:
        name = f"linear.{rng.integers(10**9)}"
        step = 0.4 / WEIGHT_FORMATS[format].grid[-1]
        tensors = [codes(name, format, "tiles", rows, cols), bf16(f"{name}.scale", rng.uniform(0.5, 1, rows) * step)]
        tensors.append(bf16(f"{name}.bias", rng.normal(0, 0.1, rows)))
        levels, scale = b.emit("quantize", [x])
        if residual is not None:
            return b.emit("linear_add", [levels, scale, residual], tensors)
        return b.emit("linear", [levels, scale], tensors, activation=2 if gelu else 0)

    def norm(x: int) -> int:
        return b.emit(
            "layer_norm", [x], [bf16("g", rng.normal(1, 0.1, 36)), bf16("b", rng.normal(0, 0.1, 36))], eps=1e-6
        )

    x = b.input("image", 144, 3)
    constants = [
        b.tensor(name, role="constant", format="f32", values=np.array([values], np.float32))
        for name, values in (("scale", [0.017, 0.018, 0.016]), ("shift", [-2.1, -2.0, -1.9]))
    ]
    y = b.emit("normalize", [x], constants)
    y = b.emit("unfold", [y], height=12, width=12, kernel=4, stride=4, padding=0)
    y = linear(y, 48, 36, "int8")
    y = b.emit("prepend_token", [y], [codes("token", "int8", "rows", 1, 36), bf16("ts", np.full(1, 0.01))])
    y = b.emit("add_positions", [y], [codes("positions", "int4", "rows", 10, 36), bf16("ps", np.full(10, 0.02))])
    for format in ("pot4", "int4"):
        z = b.emit("attention", [linear(norm(y), 36, 108, format)], num_heads=3, head_dim=12, logit_scale=12**-0.5)
        y = linear(z, 36, 36, format, residual=y)
        y = linear(linear(norm(y), 36, 90, format, gelu=True), 90, 36, format, residual=y)
    y = linear(b.emit("select_row", [norm(y)], row=0), 36, 10, "int8")
    image = {"height": 12, "width": 12, "channels": 3}
    metadata = {"task": "image-classification", "labels": [str(digit) for digit in range(10)], "image": image}
    return with_golden(b.build(output=y, metadata=metadata), random_images(4, 144, 3))


def test_a_whole_vit_equals_the_reference(tmp_path: Path) -> None:
    program = vit_program()
    artifact.write(program, tmp_path / "vit.lil")
    images = random_images(200, 12, 12, 3, seed=1)
    images[0], images[1], images[2, :, :6] = 0, 255, 0
    with lilliput.open(tmp_path / "vit.lil") as session:
        assert session.verify_golden() == 4
        outputs = session.run(images)
    assert outputs.tobytes() == reference.run(program, images.reshape(200, 144, 3)).tobytes()
    assert len(np.unique(outputs.argmax(1))) > 1  # the outputs say something


def test_threads_share_a_session_or_have_their_own(tmp_path: Path) -> None:
    artifact.write(vit_program(), tmp_path / "vit.lil")
    images = random_images(64, 12, 12, 3, seed=2)
    shared = lilliput.open(tmp_path / "vit.lil")
    wanted = shared.run(images)
    ready = threading.Barrier(8)

    def work(number: int) -> bool:
        session = shared if number % 2 else lilliput.open(tmp_path / "vit.lil")
        ready.wait()
        same = True
        for start in range(number, 64, 8):
            same &= session.run(images[start:]).tobytes() == wanted[start:].tobytes()
        return same

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    shared.close()


def test_closing_while_others_run(tmp_path: Path) -> None:
    """Each call either finishes with the right bits or says that the session is closed."""
    artifact.write(vit_program(), tmp_path / "vit.lil")
    images = random_images(64, 12, 12, 3, seed=2)
    session = lilliput.open(tmp_path / "vit.lil")
    wanted = session.run(images).tobytes()
    started = threading.Event()

    def work() -> int:
        done = 0
        while True:
            started.set()
            try:
                outputs = session.run(images)
            except InputError as error:
                assert "closed" in str(error)  # noqa: PT017 (closing may come before or after)
                return done
            assert outputs.tobytes() == wanted
            done += 1

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(work) for _ in range(4)]
        started.wait()
        session.close()
        assert all(run.result() >= 0 for run in runs)


@pytest.mark.parametrize("isa", ["mmx", "", "AVX2", "scalar,avx2", "neon" if "neon" not in isas() else "avx2"])
def test_an_instruction_set_that_is_not_there(model_path: Path, monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    """Asked for by the argument or by the environment; an empty variable is none."""
    allowed = re.escape(f"allowed: {', '.join(isas())}")
    with pytest.raises(InputError, match=f"^isa: '{isa}' is no instruction set of this build .*{allowed}$"):
        lilliput.open(model_path, isa=isa)
    monkeypatch.setenv("LILLIPUT_ISA", isa)
    if not isa:
        assert lilliput.open(model_path).isa == isas()[-1]
        return
    with pytest.raises(InputError, match=f"^LILLIPUT_ISA: '{isa}' is no instruction set of this build .*{allowed}$"):
        lilliput.open(model_path)
    assert lilliput.open(model_path, isa="scalar").isa == "scalar"  # the argument wins


@pytest.mark.parametrize("isa", isas())
def test_each_instruction_set_and_number_of_threads_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isa: str
) -> None:
    artifact.write(vit_program(), tmp_path / "vit.lil")
    images = random_images(40, 12, 12, 3, seed=3)
    wanted = lilliput.open(tmp_path / "vit.lil", isa="scalar").run(images)
    monkeypatch.setenv("LILLIPUT_ISA", isa)
    for num_threads in (1, 2, 3, 7):
        with lilliput.open(tmp_path / "vit.lil", num_threads=num_threads) as session:
            assert (session.isa, session.num_threads) == (isa, num_threads)
            assert session.run(images).tobytes() == wanted.tobytes()
            assert session.run(images[:2]).tobytes() == wanted[:2].tobytes()  # fewer images than threads
            assert session.verify_golden() == 4


@pytest.mark.parametrize("num_threads", [0, -1, "2", 1.5, True, None])
def test_a_wrong_number_of_threads(model_path: Path, num_threads: Any) -> None:
    with pytest.raises(InputError, match=re.escape(f"num_threads: {num_threads!r}; must be an integer")):
        lilliput.open(model_path, num_threads=num_threads)


def test_more_threads_than_can_be(model_path: Path) -> None:
    with pytest.raises((InputError, FailureError)):
        lilliput.open(model_path, num_threads=2**70)


def test_a_session_in_a_forked_process(model_path: Path) -> None:
    """Its threads are the parent's; it runs without them, and closes."""
    code = """
import os, sys
import numpy as np
import lilliput

session = lilliput.open(sys.argv[1], num_threads=2)
images = np.zeros((4, *session.image), np.uint8)
wanted = session.run(images).tobytes()
child = os.fork()
if child == 0:
    same = session.run(images).tobytes() == wanted
    session.close()
    os._exit(0 if same else 3)
print(os.waitpid(child, 0)[1])
"""
    result = subprocess.run(
        [sys.executable, "-c", code, model_path], capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr
