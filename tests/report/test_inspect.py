"""Every byte has an owner, and the counts are those of the bytes in the file, decoded here a second time."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lilliput.errors import ArtifactError
from lilliput.program.program import Program
from lilliput.report.inspect import inspect_file, layer_name

POT4 = [0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64]


@pytest.fixture(scope="module")
def contents(model_file: Path) -> dict[str, Any]:
    return inspect_file(model_file)


@pytest.fixture(scope="module")
def raw(model_file: Path) -> bytes:
    return model_file.read_bytes()


def sections(raw: bytes) -> list[tuple[int, int, int, int]]:
    """The file's section table: (kind, count, offset, bytes)."""
    return [struct.unpack_from("<IIQQ", raw, 48 + 24 * index) for index in range(6)]


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


def test_items_add_up_and_match_a_map_of_the_file(contents: dict[str, Any], raw: bytes) -> None:
    assert contents["file_bytes"] == len(raw) == sum(contents["bytes"].values())
    owner = np.full(len(raw), "padding", dtype=object)

    def own(start: int, size: int, name: str) -> None:
        assert (owner[start : start + size] == "padding").all()
        owner[start : start + size] = name

    own(0, 48 + 6 * 24, "tables")
    table = sections(raw)
    for _, _, offset, size in table[:3]:
        own(offset, size, "tables")
    for record, tensor in zip(tensor_records(raw), contents["tensors"], strict=True):
        format, layout, rows, cols, _, offset = record
        category = "codes" if format >= 3 else "scales" if tensor["role"] == "scale" else "vectors"
        own(table[3][2] + offset, size_of(format, layout, rows, cols), category)
    own(table[4][2], table[4][3], "metadata")
    examples, pixels, outputs = 2, 16, 3
    assert table[5][1] == contents["golden_examples"] == examples
    own(table[5][2], examples * pixels, "golden")
    own(table[5][2] + 64, examples * outputs * 4, "golden")
    assert {name: int((owner == name).sum()) for name in contents["bytes"]} == contents["bytes"]
    assert contents["bytes"]["padding"] > 0
    assert not any(raw[index] for index in np.flatnonzero(owner == "padding"))


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
