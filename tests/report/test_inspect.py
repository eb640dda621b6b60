"""Every byte has an owner, and the counts are those of the bytes in the file, decoded here a second time."""

import json
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lilliput import artifact
from lilliput.errors import ArtifactError, InputError
from lilliput.program.program import Program
from lilliput.report.inspect import inspect_file, layer_name
from lilliput.runtime.opening import open_text_model

POT4 = [0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64]


@pytest.fixture(scope="module")
def contents(model_file: Path) -> dict[str, Any]:
    return inspect_file(model_file)


@pytest.fixture(scope="module")
def raw(model_file: Path) -> bytes:
    return model_file.read_bytes()


def sections(raw: bytes) -> list[tuple[int, int, int, int]]:
    """The file's section table: (kind, count, offset, bytes)."""
    (count,) = struct.unpack_from("<I", raw, 40)
    return [struct.unpack_from("<IIQQ", raw, 48 + 24 * index) for index in range(count)]


def tensor_records(raw: bytes) -> list[tuple[int, int, int, int, int, int]]:
    """(format, layout, rows, cols, 0, offset from the start of the constants)."""
    _, count, offset, _ = sections(raw)[1]
    return [struct.unpack_from("<HHIIIQ", raw, offset + 24 * index) for index in range(count)]


def size_of(format: int, layout: int, rows: int, cols: int) -> int:
    if format in (1, 2):
        return rows * cols * (4 if format == 1 else 2)
    if layout == 1:
        return -(-rows // 16) * 16 * -(-cols // 8) * 8 * (8 if format == 3 else 4) // 8
    return rows * (cols if format == 3 else -(-cols // 2))


def level(raw: bytes, start: int, format: int, cols: int, n: int, k: int) -> int:
    """One level of a tensor in `tiles`, straight from docs/format.md."""
    tiles_a_row = -(-cols // 8) * 2
    tile = (n // 16) * tiles_a_row + k // 4
    place = 4 * (n % 16) + k % 4
    if format == 3:
        code = raw[start + 64 * tile + place]
        return code - 256 if code > 127 else code
    byte = raw[start + 64 * (tile // 2) + place]
    return POT4[byte >> 4 if tile % 2 else byte & 15]


def owners(contents: dict[str, Any], raw: bytes, golden: list[tuple[int, int]]) -> dict[str, int]:
    """Bytes by category, from a map of the file; `golden`: start in the section and bytes of each part of it."""
    owner = np.full(len(raw), "padding", dtype=object)

    def own(start: int, size: int, name: str) -> None:
        assert (owner[start : start + size] == "padding").all()
        owner[start : start + size] = name

    table = sections(raw)
    own(0, 48 + len(table) * 24, "tables")
    for _, _, offset, size in table[:3]:
        own(offset, size, "tables")
    for record, tensor in zip(tensor_records(raw), contents["tensors"], strict=True):
        format, layout, rows, cols, _, offset = record
        category = "codes" if format >= 3 else "scales" if tensor["role"] == "scale" else "vectors"
        own(table[3][2] + offset, size_of(format, layout, rows, cols), category)
    own(table[4][2], table[4][3], "metadata")
    for start, size in golden:
        own(table[5][2] + start, size, "golden")
    for _, _, offset, size in table[6:]:
        own(offset, size, "vocabulary")
    assert not any(raw[index] for index in np.flatnonzero(owner == "padding"))
    return {name: int((owner == name).sum()) for name in contents["bytes"]}


def test_items_add_up_and_match_a_map_of_the_file(contents: dict[str, Any], raw: bytes) -> None:
    assert contents["file_bytes"] == len(raw) == sum(contents["bytes"].values())
    examples, pixels, outputs = 2, 16, 3
    assert sections(raw)[5][1] == contents["golden_examples"] == examples
    assert owners(contents, raw, [(0, examples * pixels), (64, examples * outputs * 4)]) == contents["bytes"]
    assert contents["bytes"]["padding"] > 0
    assert (contents["bytes"]["vocabulary"], contents["sequence"]) == (0, None)


def test_zeros_are_the_planted_ones_and_those_of_the_bytes(
    contents: dict[str, Any], raw: bytes, planted_zeros: dict[str, int]
) -> None:
    start = sections(raw)[3][2]
    found = {}
    for record, tensor in zip(tensor_records(raw), contents["tensors"], strict=True):
        format, _, rows, cols, _, offset = record
        if tensor["role"] == "weight":
            values = [level(raw, start + offset, format, cols, n, k) for n in range(rows) for k in range(cols)]
            found[tensor["name"]] = values.count(0)
            assert tensor["nonzero"] == rows * cols - values.count(0)
    assert found == planted_zeros
    weights = 16 * 4 + 48 * 16 + 16 * 16 + 3 * 16
    assert contents["weights"] == weights
    assert contents["nonzero_weights"] == weights - sum(planted_zeros.values())
    assert contents["sparsity"] == pytest.approx(sum(planted_zeros.values()) / weights)
    assert contents["formats"] == {"pot4": weights - 48, "int8": 48}


def test_parameters_are_the_learned_ones(contents: dict[str, Any]) -> None:
    biases = 16 + 48 + 16 + 3
    norms = 4 * 16
    embeddings = (1 + 5) * 16
    assert contents["parameters"] == contents["weights"] + biases + norms + embeddings
    assert contents["fp32_bytes"] == 4 * contents["parameters"]


def test_layers_group_tensors_and_add_up(contents: dict[str, Any], planted_zeros: dict[str, int]) -> None:
    names = [layer["layer"] for layer in contents["layers"]]
    assert names == [
        "pixel_scale",
        "pixel_shift",
        "patch_embed",
        "class_token",
        "positions",
        "blocks.0",
        "norm",
        "head",
    ]
    block = contents["layers"][names.index("blocks.0")]
    assert block["weights"] == 48 * 16 + 16 * 16
    assert block["weights"] - block["nonzero_weights"] == planted_zeros["blocks.0.attn.qkv.weight"]
    for category in ("codes", "scales", "vectors"):
        assert sum(layer[category] for layer in contents["layers"]) == contents["bytes"][category]
    assert all(layer["bytes"] == layer["codes"] + layer["scales"] + layer["vectors"] for layer in contents["layers"])


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [("blocks.11.mlp.fc1.weight.scale", "blocks.11"), ("stem.0.proj.bias", "stem.0"), ("positions", "positions")],
)
def test_layer_name(tensor: str, layer: str) -> None:
    assert layer_name(tensor) == layer


def test_ops_say_what_is_executed(contents: dict[str, Any], program: Program) -> None:
    assert [op["kind"] for op in contents["ops"]] == [op.kind for op in program.ops]
    assert contents["macs"] == sum(op["macs"] for op in contents["ops"]) > 0
    qkv = next(op for op in contents["ops"] if "blocks.0.attn.qkv.weight" in op["tensors"])
    assert qkv["shape"] == [5, 48]
    assert qkv["macs"] == 5 * 48 * 16


def test_plan_never_overlaps_what_is_alive_together(contents: dict[str, Any]) -> None:
    arena = [buffer for buffer in contents["buffers"] if buffer["place"] == "arena"]
    for index, one in enumerate(arena):
        assert one["offset"] % 64 == 0
        assert one["offset"] + one["bytes"] <= contents["arena_bytes"]
        for other in arena[index + 1 :]:
            together = one["first_op"] <= other["last_op"] and other["first_op"] <= one["last_op"]
            apart = one["offset"] + one["bytes"] <= other["offset"] or other["offset"] + other["bytes"] <= one["offset"]
            assert apart or not together, (one, other)
    assert [buffer["place"] for buffer in contents["buffers"]].count("input") == 1
    output = next(buffer for buffer in contents["buffers"] if buffer["place"] == "output")
    assert output["last_op"] == len(contents["ops"]) - 1
    assert (output["rows"], output["cols"]) == (1, 3)


def test_contents_are_json(contents: dict[str, Any]) -> None:
    again = json.loads(json.dumps(contents))
    assert again["metadata"]["labels"] == ["cat", "dog", "<b>owl</b>"]
    wanted = {
        "file_bytes",
        "fp32_bytes",
        "parameters",
        "weights",
        "nonzero_weights",
        "sparsity",
        "arena_bytes",
        "formats",
    }
    assert wanted <= again.keys()


def test_damaged_and_missing_files_are_refused(model_file: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.lil"
    data = bytearray(model_file.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"damaged\.lil"):
        inspect_file(damaged)
    with pytest.raises(ArtifactError, match=r"absent\.lil"):
        inspect_file(tmp_path / "absent.lil")


# --- models of text --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_file(text_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "model.lil"
    artifact.write(text_models.text_program(), path)
    return path


def test_text_items_add_up_and_match_a_map_of_the_file(text_file: Path, text_models: ModuleType) -> None:
    contents, raw = inspect_file(text_file), text_file.read_bytes()
    assert contents["file_bytes"] == len(raw) == sum(contents["bytes"].values())
    ids = 3 + 6
    assert sections(raw)[5][1] == contents["golden_examples"] == 2
    assert owners(contents, raw, [(0, 4 * (2 + ids)), (64, 2 * 36 * 4)]) == contents["bytes"]
    letters = sum(map(len, text_models.WORDS))  # behind the number of merges, and of each token its end
    assert contents["bytes"]["vocabulary"] == 4 + 4 * len(text_models.WORDS) + letters
    assert json.loads(json.dumps(contents))["metadata"]["tokenizer"]["kind"] == "wordpiece"


def test_what_a_sequence_takes(text_file: Path) -> None:
    contents = inspect_file(text_file)
    assert contents["sequence"] == {
        "max_tokens": 24,
        "num_tokens": 24,
        "arena_bytes_per_token": artifact.read(text_file).arena_bytes,
        "vocabulary_tokens": 14,
        "merges": 0,
    }
    with open_text_model(text_file) as session:
        assert contents["arena_bytes"] == session.arena_bytes == session.sequence_arena_bytes(24)
    for buffer in contents["buffers"]:
        assert buffer["rows"] in (0, 1)
        assert buffer["reserved_bytes"] == (buffer["bytes"] if buffer["place"] == "arena" else 0)
    assert contents["ops"][0]["shape"] == [0, 36]
    assert contents["ops"][-1]["shape"] == [1, 36]


def test_work_follows_the_length(text_file: Path) -> None:
    width, mlp, blocks = 36, 52, 2
    for tokens in (1, 7, 24):
        products = tokens * (3 * width * width + width * width + 2 * width * mlp)
        attention = 2 * tokens * tokens * width
        contents = inspect_file(text_file, tokens)
        assert contents["macs"] == sum(op["macs"] for op in contents["ops"]) == blocks * (products + attention)
    assert contents == inspect_file(text_file)


def test_lengths_that_a_model_does_not_take(text_file: Path, model_file: Path) -> None:
    for path, tokens in ((text_file, 25), (text_file, -1), (model_file, 1)):
        with pytest.raises(InputError, match=rf"model\.lil: a sequence of {tokens} tokens; the model takes "):
            inspect_file(path, tokens)
