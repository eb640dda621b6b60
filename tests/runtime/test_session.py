"""`lilliput.open` and what a session takes, gives and refuses."""

import os
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.runtime.conftest import random_images

import lilliput
from lilliput import artifact
from lilliput.errors import ArtifactError, FailureError, InputError
from lilliput.program import mathfn, reference
from lilliput.program.builder import ProgramBuilder
from lilliput.program.program import Program
from lilliput.runtime._lil import ALIGNMENT, Model, Threads
from lilliput.runtime.opening import open_image_model, open_text_model

if TYPE_CHECKING:
    from tests.hostile_files import HostileFile


def grey_program() -> Program:
    """3 x 2 grey pixels: the mean, and its opposite."""
    b = ProgramBuilder()
    x = b.input("image", rows=6, cols=1)
    one, zero = (
        b.tensor(name, role="constant", format="f32", values=np.full((1, 1), value, np.float32))
        for name, value in (("one", 1.0), ("zero", 0.0))
    )
    mean = b.emit("mean_rows", [b.emit("normalize", [x], [one, zero])])
    levels, scale = b.emit("quantize", [mean])
    codes = b.tensor("codes", role="weight", format="pot4", layout="tiles", values=np.array([[1], [-1]], np.int8))
    ones, zeros = (
        b.tensor(name, role="scale", format="bf16", values=np.full((1, 2), value, np.float32))
        for name, value in (("ones", 1.0), ("zeros", 0.0))
    )
    y = b.emit("linear", [levels, scale], [codes, ones, zeros], activation=0)
    image = {"height": 3, "width": 2, "channels": 1}
    return b.build(output=y, metadata={"task": "image-classification", "labels": ["light", "dark"], "image": image})


@pytest.fixture
def grey_path(tmp_path: Path) -> Path:
    path = tmp_path / "grey.lil"
    artifact.write(grey_program(), path)
    return path


def test_what_a_session_says(model_path: Path, good_program: Program) -> None:
    with open_image_model(model_path) as session:
        assert session.image == (4, 4, 3)
        assert session.image.height == 4
        assert session.labels == ("a", "b", "c")
        assert session.arena_bytes == good_program.arena_bytes
        assert session.file_bytes == model_path.stat().st_size
        assert (session.name, session.num_outputs) == (str(model_path), 3)
        assert dict(session.metadata) == dict(good_program.metadata)
        with pytest.raises(TypeError):
            session.metadata["labels"] = []
        assert session.verify_golden() == 1


def test_one_image_and_batches(model_path: Path, good_program: Program) -> None:
    images = random_images(70, 4, 4, 3)  # more than one call into C
    wanted = reference.run(good_program, images.reshape(70, 16, 3))
    with lilliput.open(str(model_path)) as session:
        outputs = session.run(images)
        assert outputs.dtype == np.float32
        assert outputs.shape == (70, 3)
        assert outputs.tobytes() == wanted.tobytes()
        assert session.run(images[3]).tobytes() == wanted[3].tobytes()
        assert session.run(images[3]).shape == (3,)
        assert session.run(images[:0]).shape == (0, 3)
        assert session.run(images[::-3]).tobytes() == wanted[::-3].tobytes()
        assert session.run(np.asfortranarray(images)).tobytes() == wanted.tobytes()
        frozen = images.copy()
        frozen.setflags(write=False)
        assert session.run(frozen).tobytes() == wanted.tobytes()


def test_grey_images_need_no_channel_axis(grey_path: Path) -> None:
    images = random_images(5, 3, 2)
    with lilliput.open(grey_path) as session:
        wanted = session.run(images[..., None])
        assert np.allclose(wanted[:, 0], images.mean((1, 2)), rtol=0.01)
        assert session.run(images).tobytes() == wanted.tobytes()
        assert session.run(images[0]).tobytes() == wanted[0].tobytes()
        assert session.run(images[0, ..., None]).shape == (2,)
        assert session.run(random_images(3, 3, 2)).shape == (3, 2)  # a batch of three, not an image of two channels
        assert session.verify_golden() == 0  # the file has none


def test_predict(grey_path: Path) -> None:
    images = np.stack([np.full((3, 2), 9, np.uint8), np.zeros((3, 2), np.uint8)])
    with lilliput.open(grey_path) as session:
        labels, probabilities = session.predict(images)
        assert labels.tolist() == [0, 0]  # equal outputs: the first
        assert probabilities.dtype == np.float32
        assert probabilities.tobytes() == mathfn.softmax(session.run(images)).tobytes()
        assert np.allclose(probabilities, np.array([[1, 0], [0.5, 0.5]]), atol=1e-6)
        labels, probabilities = session.predict(images[0])
        assert (labels.shape, probabilities.shape) == ((1,), (1, 2))
        labels, probabilities = session.predict(images[:0])
        assert (labels.shape, probabilities.shape) == ((0,), (0, 2))


WRONG_IMAGES: dict[str, tuple[Any, str]] = {
    "float": (np.zeros((4, 4, 3), np.float32), "the images are float32; must be uint8 pixels 0..255, 4 x 4 x 3"),
    "nan": (np.full((4, 4, 3), np.nan), "the images are float64; must be uint8 pixels 0..255"),
    "int64": (np.zeros((4, 4, 3), np.int64), "the images are int64; must be uint8"),
    "bool": (np.zeros((4, 4, 3), bool), "the images are bool; must be uint8"),
    "list": ([[1, 2], [3, 4]], "the images are int64; must be uint8"),
    "ragged": ([[1, 2], [3]], "the images are no array"),
    "text": ("photo.png", "the images are <U9; must be uint8"),
    "none": (None, "the images are object; must be uint8"),
    "height": (np.zeros((5, 4, 3), np.uint8), r"shape \(5, 4, 3\); must be .* 4 x 4 x 3 or a batch"),
    "channels-first": (np.zeros((3, 4, 4), np.uint8), r"shape \(3, 4, 4\)"),
    "grey": (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
    "batch-of-grey": (np.zeros((2, 4, 4), np.uint8), r"shape \(2, 4, 4\)"),
    "five-axes": (np.zeros((1, 1, 4, 4, 3), np.uint8), r"shape \(1, 1, 4, 4, 3\)"),
    "scalar": (np.uint8(3), r"shape \(\)"),
    "flat": (np.zeros(48, np.uint8), r"shape \(48,\)"),
}


@pytest.mark.parametrize("name", WRONG_IMAGES)
def test_wrong_images_are_refused(model_path: Path, name: str) -> None:
    images, message = WRONG_IMAGES[name]
    with lilliput.open(model_path) as session:
        for method in (session.run, session.predict):
            with pytest.raises(InputError, match=message) as caught:
                method(images)
            assert str(caught.value).startswith(str(model_path))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 3), (3,), (3, 2, 3), (1, 1, 3, 2), (5, 3, 2, 2)])
def test_wrong_grey_shapes_are_refused(grey_path: Path, shape: tuple[int, ...]) -> None:
    with lilliput.open(grey_path) as session, pytest.raises(InputError, match="3 x 2 x 1"):
        session.run(np.zeros(shape, np.uint8))


def test_a_wrong_golden_output_is_found(good_program: Program, tmp_path: Path) -> None:
    outputs = good_program.golden_outputs.copy()
    outputs.view(np.uint32)[0, 0, 2] ^= 1  # the last bit of the last output
    path = tmp_path / "model.lil"
    artifact.write(replace(good_program, golden_outputs=outputs), path)
    with (
        lilliput.open(path) as session,
        pytest.raises(FailureError, match=r"model.lil: golden example 0: output 2 is .*; the file says"),
    ):
        session.verify_golden()


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.lil").touch()
    for name, message in (
        ("missing.lil", "there is no such file"),
        ("empty.lil", "truncated: the file is empty"),
        ("", "not a file"),
        ("nul\0.lil", "there is no such file"),
    ):
        with pytest.raises(ArtifactError, match=message) as caught:
            lilliput.open(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.lil")
    with pytest.raises(ArtifactError, match="not a file"):
        lilliput.open(tmp_path / "pipe.lil")


def test_a_file_that_may_not_be_read(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ArtifactError, match=r"model.lil: cannot be read \(Permission denied\)"):
        lilliput.open(model_path)


def test_hostile_file(hostile_file: "HostileFile", tmp_path: Path) -> None:
    """One line that begins with the file's name. (Names of records are the Python reader's: a session drops them.)"""
    path = tmp_path / "hostile.lil"
    path.write_bytes(hostile_file.data)
    if re.match(r"metadata-(no-)?(tensors|buffers)", hostile_file.name):
        lilliput.open(path).close()
        return
    with pytest.raises(ArtifactError) as caught:
        lilliput.open(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_no_memory_for_the_arena(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", fail)
    with pytest.raises(FailureError, match=r"model.lil: needs \d+ bytes of work memory"):
        lilliput.open(model_path)


def test_closing(model_path: Path) -> None:
    session = lilliput.open(model_path)
    image = random_images(4, 4, 3)
    kept = session.run(image)
    session.close()
    session.close()
    for call in (lambda: session.run(image), lambda: session.predict(image), session.verify_golden):
        with pytest.raises(InputError, match="the session is closed"):
            call()
    assert session.labels == ("a", "b", "c")
    assert np.isfinite(kept).all()
    model_path.unlink()
    with pytest.raises(ArtifactError, match="no such file"):
        lilliput.open(model_path)


def test_a_session_outlives_the_replacement_of_its_file(model_path: Path, good_program: Program) -> None:
    with lilliput.open(model_path) as session:
        artifact.write(grey_program(), model_path)
        assert session.verify_golden() == 1
    with open_image_model(model_path) as session:
        assert session.image.channels == 1


def test_a_model_of_images_where_text_is_wanted(model_path: Path) -> None:
    message = r"model\.lil: it takes images \(its task is image-classification\); this needs a model that takes text$"
    with pytest.raises(InputError, match=message):
        open_text_model(model_path)
    with (
        lilliput.open(model_path) as session,
        pytest.raises(InputError, match=r"model\.lil: its task is image-classification; embed needs"),
    ):
        session.embed("a text")


def test_what_the_binding_refuses(model_path: Path) -> None:
    """Memory of another size or kind than the core asks for; nothing is run, nothing is copied behind the back."""
    model = Model(model_path.read_bytes())
    memory = np.zeros(3 * model.arena_bytes + ALIGNMENT, np.uint8)
    memory = memory[-memory.ctypes.data % ALIGNMENT :]
    arena = memory[: model.arena_bytes]
    images, outputs = np.zeros((2, 48), np.uint8), np.zeros((2, 3), np.float32)
    model.run(arena, images, outputs)
    wanted = outputs.copy()
    outputs[:] = 0
    frozen = np.zeros((2, 3), np.float32)
    frozen.setflags(write=False)
    threads = Threads(3)
    refused: dict[str, tuple[Any, ...]] = {
        "the arena is smaller": (arena[:-1], images, outputs),
        "the arena is smaller than": (memory[: model.arena_bytes], images, outputs, threads),  # enough for one
        "multiple of 64": (memory[1 : model.arena_bytes + 1], images, outputs),
        "as many outputs": (arena, images, outputs[:1]),
        "input has not the size": (arena, images[:, :47].copy(), outputs),
        "output has not the size": (arena, images, np.zeros((2, 4), np.float32)),
        "share memory": (arena, arena[:96].reshape(2, 48), outputs),
    }
    for message, arguments in refused.items():
        with pytest.raises(InputError, match=message):
            model.run(*arguments)
    wrong_types: tuple[tuple[Any, ...], ...] = (
        (arena, images.astype(np.int8), outputs),
        (arena, images.astype(np.float32), outputs),
        (arena, images[0], outputs),
        (arena, np.zeros((2, 96), np.uint8)[:, ::2], outputs),
        (arena, np.asfortranarray(images), outputs),
        (arena, images, outputs.astype(np.float64)),
        (arena, images, np.zeros((2, 6), np.float32)[:, ::2]),
        (arena, images, frozen),
        (arena.astype(np.float32), images, outputs),
        (arena, images, None),
        (arena, images, outputs, 3),
    )
    for arguments in wrong_types:
        with pytest.raises(TypeError):
            model.run(*arguments)
    assert not outputs.any()
    model.run(arena, images, outputs)
    assert outputs.tobytes() == wanted.tobytes()


CHANGED = """
import os, struct, sys, time
import numpy as np
import lilliput

path, how = sys.argv[1:]
session = lilliput.open(path)
image = np.full(session.image, 9, np.uint8)
before = session.run(image).tobytes()
stamp = os.stat(path)
time.sleep(0.05)  # a file system's clock may tick every 10 ms
data = bytearray(open(path, "rb").read())
ops_count, ops = struct.unpack_from("<IQ", data, 48 + 2 * 24 + 4)
constants, constant_bytes = struct.unpack_from("<QQ", data, 48 + 3 * 24 + 8)
if how == "cut":
    os.truncate(path, 0)
elif how in ("records", "hidden"):
    for op in range(ops_count):
        struct.pack_into("<H", data, ops + 40 * op, 60000)
elif how == "constants":
    data[constants : constants + constant_bytes] = bytes([0x7F]) * constant_bytes
if how != "cut":
    with open(path, "r+b") as file:
        file.write(data)
if how == "hidden":
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
try:
    print("the same" if session.run(image).tobytes() == before else "another result")
except lilliput.ArtifactError as error:
    print(str(error).removeprefix(f"{path}: "))
"""


def test_the_program_stays_what_was_verified(model_path: Path) -> None:
    """Even where the file's time does not tell that its records have changed."""
    result = subprocess.run(
        [sys.executable, "-c", CHANGED, model_path, "hidden"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "the same\n"), result.stderr


@pytest.mark.parametrize("how", ["cut", "records", "constants"])
def test_a_file_that_changes_in_place(model_path: Path, how: str) -> None:
    """It is refused: never a crash, never another result."""
    result = subprocess.run(
        [sys.executable, "-c", CHANGED, model_path, how], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "changed on disk since it was opened; open it again\n"), (
        result.stderr
    )


def test_import_and_open_bring_numpy_only(model_path: Path) -> None:
    code = (
        "import sys, lilliput; lilliput.open(sys.argv[1]).verify_golden(); "
        "print(' '.join(name for name in ('PIL', 'torch', 'pydantic', 'typer', 'rich') if name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code, model_path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


def test_version_of_the_format_is_in_the_message(good_file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.lil"
    path.write_bytes(good_file[:8] + struct.pack("<I", 7) + good_file[12:])
    with pytest.raises(ArtifactError, match="another version of the format; this runtime reads versions 1 and 2"):
        lilliput.open(path)


def test_the_binding_refuses_rows_of_another_width(model_path: Path) -> None:
    model = Model(model_path.read_bytes())
    memory = np.zeros(2 * model.arena_bytes + ALIGNMENT, np.uint8)
    arena = memory[-memory.ctypes.data % ALIGNMENT :][: 2 * model.arena_bytes]
    for images, outputs in (
        (np.zeros((4, 47), np.uint8), np.zeros((4, 3), np.float32)),
        (np.zeros((4, 48), np.uint8), np.zeros((4, 2), np.float32)),
    ):
        for threads in (None, Threads(2)):
            with pytest.raises(InputError):
                model.run(arena, images, outputs, threads)
