"""The packed file: what it unpacks to, what it costs, who takes it, and what is refused."""

import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import lilliput
from lilliput import artifact, cli, pipeline
from lilliput.compress_checkpoint import compress, read_checkpoint
from lilliput.compress_config import ImageCompressRecipe
from lilliput.config import ModelSettings, Recipe, parse_recipe, parse_settings
from lilliput.errors import ArtifactError, FailureError
from lilliput.models.huggingface import save_pretrained
from lilliput.models.vit import ViT
from lilliput.program.builder import ProgramBuilder, with_golden
from lilliput.program.program import Program
from lilliput.runtime._lil import ALIGNMENT
from lilliput.runtime.mapped import load_file
from lilliput.runtime.texts import TextSession

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*/*.lil"))
SMALLEST = next(path for path in GOLDEN if path.stem == "smallest")
SIDE, CLASSES = 8, 10


def classifier(zeros: float) -> Program:
    """A linear layer of PoT-4 codes on 8x8 pixels; a share of its weights is zero, the others are equally likely."""
    rng = np.random.default_rng(0)
    builder = ProgramBuilder()
    x = builder.input("image", rows=SIDE * SIDE, cols=1)
    constants = [
        builder.tensor(name, role="constant", format="f32", values=np.full((1, 1), value, np.float32))
        for name, value in (("pixel_scale", 0.01), ("pixel_shift", -0.5))
    ]
    x = builder.emit("normalize", [x], tensors=constants)
    x = builder.emit("unfold", [x], height=SIDE, width=SIDE, kernel=SIDE, stride=SIDE, padding=0)
    for name in ("hidden", "head"):
        cols = SIDE * SIDE if name == "hidden" else 256
        rows = 256 if name == "hidden" else CLASSES
        levels = rng.choice(np.array([-64, -16, -4, -1, 1, 4, 16, 64], np.int8), (rows, cols))
        levels[rng.random(levels.shape) < zeros] = 0
        tensors = [builder.tensor(f"{name}.weight", role="weight", format="pot4", layout="tiles", values=levels)]
        for part, role, value in (("weight.scale", "scale", 0.015625), ("bias", "bias", 0.0)):
            values = np.full((1, rows), value, np.float32)
            tensors.append(builder.tensor(f"{name}.{part}", role=role, format="bf16", values=values))
        x = builder.emit("linear", [*builder.emit("quantize", [x])], tensors=tensors, activation=0)
    metadata = {
        "task": "image-classification",
        "labels": [str(number) for number in range(CLASSES)],
        "image": {"height": SIDE, "width": SIDE, "channels": 1},
        "provenance": {"data": {"name": "digits"}},
    }
    return with_golden(builder.build(output=x, metadata=metadata), np.zeros((1, SIDE * SIDE, 1), np.uint8))


def deflate(content: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return coder.compress(content) + coder.flush()


def container(content: bytes, payload: bytes | None = None, **fields: Any) -> bytes:
    """A packed file as docs/format.md has it, but for what `fields` say otherwise; its checksums are right."""
    payload = deflate(content) if payload is None else payload
    values = {
        "magic": bytes.fromhex("89 4C 49 5A 0D 0A 1A 0A"),
        "version": 1,
        "payload_bytes": len(payload),
        "payload_crc": zlib.crc32(payload),
        "unpacked_bytes": len(content),
        "unpacked_crc": zlib.crc32(content),
    }
    assert fields.keys() <= values.keys()
    return struct.pack("<8s5I", *{**values, **fields}.values()) + payload


def refusals(path: Path) -> set[str]:
    """The lines with which everything that reads a file refuses this one."""
    said = set()
    readers: tuple[Callable[[Path], object], ...] = (artifact.read, lilliput.open)
    for reader in readers:
        with pytest.raises(ArtifactError) as caught:
            reader(path)
        said.add(str(caught.value))
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in said)
    return said


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model.lil"
    artifact.write(classifier(0.6), path)
    artifact.write_packed(path)
    return path


@pytest.fixture
def lil(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


# --- the format ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_same_bytes_and_the_same_outputs(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    packed = artifact.pack(data, path.name)
    assert artifact.pack(data, path.name) == packed
    assert len(packed) < len(data)
    assert artifact.unpack(packed, path.name) == data
    # The page: fixed fields, and a payload that any inflate decodes.
    assert packed == container(data, packed[28:])
    assert zlib.decompress(packed[28:], wbits=-15) == data
    misnamed = tmp_path / "model.lil"  # what a file is, its first bytes say
    misnamed.write_bytes(packed)
    program = artifact.read(misnamed)
    assert artifact.to_bytes(program) == data
    with lilliput.open(misnamed) as session:
        assert session.file_bytes == len(data)
        assert session.verify_golden() == len(program.golden_inputs)
        inputs: Any = program.golden_inputs
        if not isinstance(session, TextSession):
            inputs = np.asarray(inputs).reshape(len(inputs), *session.image)
        outputs = session.run(inputs)
    assert np.array_equal(outputs.view(np.uint32), program.golden_outputs[:, 0].view(np.uint32))


def test_zeros_without_a_pattern_shrink_the_packed_file() -> None:
    """Which they do not in a `model.lil`. Both are within a few per cent of what entropy allows the codes."""
    sizes = {}
    for zeros in (0.0, 0.6):
        data = artifact.to_bytes(classifier(zeros))
        codes = [tensor for tensor in artifact.from_bytes(data, "test").tensors if tensor.format == "pot4"]
        entropy = 0.0
        for tensor in codes:
            counts = np.unique_counts(tensor.values).counts
            entropy -= float((counts * np.log2(counts / counts.sum())).sum()) / 8
        packed = len(artifact.pack(data, "test"))
        assert entropy < packed < 1.03 * entropy + 1_500  # of all that is not codes, with Huffman's tables
        sizes[zeros] = (len(data), packed)
    assert sizes[0.0][0] == sizes[0.6][0]
    assert sizes[0.6][1] < 0.8 * sizes[0.0][1]


def test_it_is_memory_of_its_own_where_the_kernels_want_it(model: Path, tmp_path: Path) -> None:
    """So it runs on when the packed file is overwritten or gone, where a mapped one refuses."""
    path = tmp_path / "model.lilz"
    path.write_bytes(model.with_suffix(".lilz").read_bytes())
    file = load_file(str(path))
    assert file.mapping[:] == model.read_bytes()
    assert np.frombuffer(file.mapping, np.uint8).ctypes.data % ALIGNMENT == 0
    images = np.zeros((2, SIDE, SIDE, 1), np.uint8)
    with lilliput.open(path) as session, session.share() as other:
        path.write_bytes(b"something else")
        path.unlink()
        assert np.array_equal(session.run(images), other.run(images))
        session.close()
        assert len(other.run(images)) == 2
    with lilliput.open(model) as session:
        assert session.share().run(images).shape == (2, CLASSES)


# --- what is refused -------------------------------------------------------------------------------------------------

GOOD = SMALLEST.read_bytes()
STREAM = deflate(GOOD)


def saying(size: int) -> bytes:
    """The good file with another size in its header."""
    return GOOD[:16] + size.to_bytes(8, "little") + GOOD[24:]


HOSTILE: dict[str, tuple[bytes, str]] = {
    "cut in the magic": (container(GOOD)[:4], "not a .lil file|not a Lilliput model file"),
    "cut in the header": (container(GOOD)[:27], "truncated: 27 bytes; the header of a packed file takes 28"),
    "header alone": (container(GOOD)[:28], rf"truncated: 28 bytes of {len(STREAM) + 28}"),
    "cut in the payload": (container(GOOD)[:-1], rf"truncated: {len(STREAM) + 27} bytes of {len(STREAM) + 28}"),
    "trailing byte": (container(GOOD) + b"\0", rf"altered or damaged: {len(STREAM) + 29} bytes; its header says"),
    "trailing byte, counted": (container(GOOD, STREAM + b"\0"), "1 bytes follow the end of its payload's stream"),
    "trailing stream": (container(GOOD, STREAM + STREAM), rf"{len(STREAM)} bytes follow the end of its payload's"),
    "version 0": (container(GOOD, version=0), "has version 0 of packed files; this build reads version 1"),
    "version 2": (container(GOOD, version=2), "has version 2 of packed files; this build reads version 1"),
    "payload's checksum": (container(GOOD, payload_crc=7), "altered or damaged: the payload's checksum is .*; its h"),
    "content's checksum": (container(GOOD, unpacked_crc=7), "altered or damaged: the content's checksum is .*00000007"),
    "payload bytes": (container(GOOD, payload_bytes=2**32 - 1), "truncated"),
    "a smaller size": (container(GOOD, unpacked_bytes=len(GOOD) - 1), f"those of the model in it say {len(GOOD)}"),
    "a larger size": (container(GOOD, unpacked_bytes=len(GOOD) + 1), f"those of the model in it say {len(GOOD)}"),
    "size 0": (container(GOOD, unpacked_bytes=0), f"those of the model in it say {len(GOOD)}"),
    "more than the model says": (
        container(saying(len(GOOD) - 1), unpacked_bytes=len(GOOD) - 1),
        "unpacks to more than the .* its header says",
    ),
    "less than the model says": (
        container(saying(len(GOOD) + 1), unpacked_bytes=len(GOOD) + 1),
        f"unpacks to {len(GOOD)} bytes; its header says",
    ),
    "an honest bomb": (container(bytes(2**22)), "does not hold a .lil file"),
    "size 2^31": (container(GOOD, unpacked_bytes=2**31), "bytes can hold at most"),
    "size of more than Deflate can": (container(GOOD, unpacked_bytes=2**31 - 1), "bytes can hold at most"),
    "no payload": (container(GOOD, b""), "0 bytes can hold at most 0"),
    "no stream": (container(GOOD, b"\xff" * len(STREAM)), "its payload cannot be decoded"),
    "a stream cut short": (container(GOOD, STREAM[:-9]), rf"its payload ends after \d+ bytes .* says {len(GOOD)}"),
    "packed twice": (container(container(GOOD)), "a packed file in a packed file; must hold a model.lil"),
    "foreign content": (container(b"x" * 300), "does not hold a .lil file"),
    "no content": (container(b""), "does not hold a .lil file"),
    "damaged content": (container(GOOD[:-1] + b"\7"), "altered"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(case: str, tmp_path: Path) -> None:
    data, message = HOSTILE[case]
    path = tmp_path / "model.lilz"
    path.write_bytes(data)
    for said in refusals(path):
        assert re.search(message, said), said


def test_a_bomb_is_refused_without_the_memory_that_it_asks_for() -> None:
    """64 MiB from 64 KiB: whether its headers hide that, name more than can be, or say it of what is no model."""
    zeros = saying(1000)[:24] + bytes(2**26)
    payload = deflate(zeros)
    hidden, boastful = (container(zeros, payload, unpacked_bytes=size) for size in (1000, 2**31 - 1))
    honest = container(bytes(2**26))
    del zeros
    for bomb, message in (
        (hidden, "unpacks to more than the 1000"),
        (boastful, "can hold at most"),
        (honest, "does not hold a .lil file"),
    ):
        tracemalloc.start()
        try:
            with pytest.raises(ArtifactError, match=message):
                artifact.unpack(bomb, "bomb")
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()


def test_any_changed_byte_is_noticed() -> None:
    packed = artifact.pack(GOOD, "good")
    rng = np.random.default_rng(0)
    for place in [*range(28), *rng.integers(28, len(packed), 200).tolist()]:
        changed = bytearray(packed)
        changed[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(ArtifactError):
            artifact.unpack(bytes(changed), "changed")


def test_an_altered_stream_with_the_right_checksum_is_refused_or_the_same_file() -> None:
    payload = artifact.pack(GOOD, "good")[28:]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        changed = bytearray(payload)
        for place in rng.integers(0, len(payload), rng.integers(1, 4)):
            changed[place] = int(rng.integers(256))
        try:
            assert artifact.unpack(container(GOOD, bytes(changed)), "changed") == GOOD
        except ArtifactError:
            refused += 1
    assert refused > 350


def test_only_a_valid_file_that_is_not_packed_can_be_packed() -> None:
    with pytest.raises(ArtifactError, match=r"^x\.lil: packed already; give a model\.lil$"):
        artifact.pack(artifact.pack(GOOD, "x.lil"), "x.lil")
    with pytest.raises(ArtifactError, match=r"^x\.lil: altered or damaged"):
        artifact.pack(GOOD[:-1] + b"\7", "x.lil")
    with pytest.raises(ArtifactError, match=r"^x\.lil: not a packed file; give one that lil pack wrote \(\*\.lilz\)$"):
        artifact.unpack(GOOD, "x.lil")


# --- the command line ------------------------------------------------------------------------------------------------


def test_pack_and_unpack(lil: Any, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.lil"
    path.write_bytes(model.read_bytes())
    code, out, _ = lil("pack", path)
    packed = path.with_suffix(".lilz")
    size, packed_size = path.stat().st_size, packed.stat().st_size
    assert (code, out) == (0, f"{packed}: {packed_size:,} bytes, {packed_size / size:.1%} of the {size:,} of {path}\n")
    path.unlink()
    code, out, _ = lil("unpack", packed)
    assert (code, out) == (0, f"{path}: {size:,} bytes, from the {packed_size:,} of {packed}\n")
    assert path.read_bytes() == model.read_bytes()
    assert lil("pack", path, "--out", tmp_path / "b.bin")[0] == 0
    assert lil("unpack", tmp_path / "b.bin", "--out", tmp_path / "c.bin")[0] == 0
    assert (tmp_path / "b.bin").read_bytes() == packed.read_bytes()
    assert (tmp_path / "c.bin").read_bytes() == model.read_bytes()


def test_mistakes_are_one_line(lil: Any, model: Path, tmp_path: Path) -> None:
    packed, foreign = tmp_path / "a.lilz", tmp_path / "b.lilz"
    packed.write_bytes(model.with_suffix(".lilz").read_bytes())
    foreign.write_bytes(container(b"x" * 300))
    damaged = tmp_path / "c.lilz"
    damaged.write_bytes(container(GOOD[:-1] + b"\7"))
    (tmp_path / "link.lil").symlink_to(model)
    over = "would be written over what is read; give another file as --out"
    before = {path: path.read_bytes() for path in (model, packed)}
    for arguments, message in (
        (("pack", model, "--out", tmp_path / "link.lil"), f"link.lil: {over}"),
        (("pack", packed), "a.lilz: packed already; give a model.lil"),
        (("pack", tmp_path / "absent.lil"), "absent.lil: cannot be read"),
        (("pack", model, "--out", tmp_path), "is there and is not a file"),
        (("unpack", packed, "--out", packed), f"a.lilz: {over}"),
        (("unpack", model, "--out", tmp_path / "x.lil"), "not a packed file"),
        (("unpack", foreign), "b.lilz: does not hold a .lil file"),
        (("unpack", damaged), "c.lilz: altered or damaged"),
    ):
        code, out, err = lil(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert message in err
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.lilz", "b.lilz", "c.lilz", "link.lil"]


def test_commands_take_a_packed_file(lil: Any, model: Path) -> None:
    packed = model.with_suffix(".lilz")
    wanted, found = (lil("inspect", path) for path in (model, packed))
    count, total = packed.stat().st_size, model.stat().st_size
    said = f"packed: {count:,} bytes, {count / total:.2%}".replace("%", " %")
    assert (wanted[0], found[0]) == (0, 0)
    assert said in found[1] and "packed:" not in wanted[1]
    lines = [line for line in found[1].splitlines()[1:] if "packed:" not in line]
    assert lines == wanted[1].splitlines()[1:]  # of what is in it, all is the same
    wanted, found = (lil("eval", path, "--json")[1].replace(path.name, "") for path in (model, packed))
    assert '"accuracy"' in found and found == wanted


def test_text_commands_take_a_packed_file(lil: Any, text_models: ModuleType, tmp_path: Path) -> None:
    model, lines = tmp_path / "text.lil", tmp_path / "lines.txt"
    artifact.write(text_models.text_program(), model)
    lines.write_text("the small model\na tiny text .\n")
    vectors = []
    for path in (model, tmp_path / artifact.write_packed(model)["packed_file"]):
        assert lil("embed", path, lines, "--out", tmp_path / "vectors.npy")[0] == 0
        vectors.append((tmp_path / "vectors.npy").read_bytes())
    assert vectors[0] == vectors[1]


# --- runs ------------------------------------------------------------------------------------------------------------


def recipe(**changes: Any) -> Recipe:
    quick = {"epochs": 1, "batch_size": 32}
    settings = {
        "name": "small",
        "stages": ["train", "quantize", "export"],
        "data": {"name": "digits", "limit": 200},
        "model": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16},
        "train": quick,
        "quantize": quick,
    }
    return parse_recipe({**settings, **changes}, "test")


def test_a_run_writes_it_where_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pipeline.run(recipe(export={"packed": True}), tmp_path, quiet=True)
    model, packed = folder / "model.lil", folder / "model.lilz"
    content = packed.read_bytes()
    assert artifact.unpack(content, "packed") == model.read_bytes()
    record = (folder / "03-export" / "record.json").read_text()
    assert f'"packed_file": "model.lilz", "packed_bytes": {len(content)}' in record

    packed.unlink()  # one that is gone is made again, the rest of the run is not
    done: list[str] = []
    do_stage = pipeline.Run.do_stage

    def note(state: pipeline.Run, index: int, key: str) -> dict[str, Any]:
        done.append(state.stages[index])
        return do_stage(state, index, key)

    monkeypatch.setattr(pipeline.Run, "do_stage", note)
    pipeline.run(recipe(export={"packed": True}), tmp_path, quiet=True)
    assert (done, packed.read_bytes()) == (["export"], content)
    pipeline.run(recipe(), tmp_path, quiet=True)  # one that is not wanted any more does not lie beside another file
    assert done == ["export", "export"]
    assert model.exists() and not packed.exists()


def test_it_goes_before_an_earlier_stage_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pipeline.run(recipe(export={"packed": True}), tmp_path, quiet=True)

    def fail(*_: object, **__: object) -> None:
        raise FailureError("enough seen")

    monkeypatch.setattr(pipeline, "fit", fail)
    with pytest.raises(FailureError, match="enough seen"):
        pipeline.run(recipe(export={"packed": True}, quantize={"epochs": 2}), tmp_path, quiet=True)
    assert not list(folder.glob("model.lil*"))


def test_a_compressed_checkpoint_too(tmp_path: Path) -> None:
    sizes = ModelSettings(patch_size=4, embed_dim=16, depth=1, num_heads=2, mlp_dim=16)
    model = ViT(sizes, (8, 8, 1), 10)
    model.set_normalization(np.full(1, 60.0), np.full(1, 60.0))
    model.labels = tuple("0123456789")
    save_pretrained(model, tmp_path / "vit")
    settings = {
        "stages": ["quantize", "export"],
        "data": {"name": "digits", "limit": 40},
        "quantize": {"images": 20},
        "export": {"packed": True},
    }
    parsed = parse_settings(settings, "test", None, ImageCompressRecipe)
    folder = compress(read_checkpoint(tmp_path / "vit"), parsed, tmp_path / "runs", quiet=True)
    content = (folder / "model.lilz").read_bytes()
    assert artifact.unpack(content, "packed") == (folder / "model.lil").read_bytes()
    assert f'"packed_bytes": {len(content)}' in (folder / "02-export" / "record.json").read_text()
