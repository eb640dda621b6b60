"""What `Program.validate` refuses and no file can hold; all else is in tests/hostile_files and its suite."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lilliput.errors import ArtifactError
from lilliput.program.program import Op, Program


def spoil_tensor(program: Program, name: str, **changes: Any) -> Program:
    tensors = [replace(tensor, **changes) if tensor.name == name else tensor for tensor in program.tensors]
    assert any(tensor.name == name for tensor in tensors)
    return replace(program, tensors=tuple(tensors))


def spoil_op(program: Program, target: str, **changes: Any) -> Program:
    index = next(index for index, op in enumerate(program.ops) if op.kind == target)
    ops = list(program.ops)
    ops[index] = replace(ops[index], **changes)
    return replace(program, ops=tuple(ops))


def test_good_program_is_valid(good_program: Program) -> None:
    good_program.validate()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("patch", {"role": "gift"}, r"tensor 2 \(patch\): role is 'gift'; must be one of weight, bias"),
        ("patch", {"format": "int3"}, r"tensor 2 \(patch\): format is 'int3'; must be one of f32"),
        ("patch", {"layout": "columns"}, r"layout is 'columns'; must be one of rows, tiles, blocks"),
        ("patch", {"values": np.zeros((7, 12), np.int64)}, r"values are int64 .*; must be int8 with two axes"),
        ("patch", {"values": np.zeros(12, np.int8)}, r"values are int8 with shape \(12,\); must be int8 with two"),
        ("patch", {"values": np.full((7, 12), 3, np.int8)}, r"level 3 is not in format pot4; allowed: -64, -32"),
        ("qkv", {"values": np.full((24, 7), 8, np.int8)}, r"level 8 is not in format int4; allowed: -7 to 7"),
        ("proj", {"values": np.full((7, 8), -128, np.int8)}, r"level -128 is not in format int8; allowed: -127 to 127"),
        ("patch", {"values": np.zeros((0, 12), np.int8)}, "rows is 0; must be 1 to 16777216"),
        ("patch.bias", {"values": np.ones((1, 7))}, "values are float64 .*; must be float32 with two axes"),
        ("patch.bias", {"values": np.full((1, 7), 0.1, np.float32)}, r"holds \[0.1\]; must be a bfloat16"),
        (
            "patch.bias",
            {"values": np.full((1, 7), np.nan, np.float32)},
            r"holds \[nan\]; every constant must be finite",
        ),
    ],
)
def test_bad_tensor_is_refused(good_program: Program, name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        spoil_tensor(good_program, name, **changes).validate()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("mean_rows", {"kind": "soften"}, r"op \d+: kind is soften; must be one of normalize"),
        ("mean_rows", {"inputs": ()}, r"op \d+ \(mean_rows\): has 0 inputs; must have 1"),
        ("mean_rows", {"inputs": (-1,)}, "inputs: index -1 is out of range; there are"),
        ("mean_rows", {"tensors": (0,)}, "has 1 tensors; must have 0"),
        ("attention", {"outputs": (0,)}, "has 1 outputs; must have 2"),
        ("select_row", {"attributes": {}}, r"attributes are \[\]; must be \['row'\]"),
        ("select_row", {"attributes": {"row": -1}}, "row is -1; must be an integer"),
        ("layer_norm", {"attributes": {"eps": 1}}, "eps is 1; must be a finite float"),
    ],
)
def test_bad_op_is_refused(good_program: Program, kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        spoil_op(good_program, kind, **changes).validate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"golden_inputs": np.zeros((1, 15, 3), np.uint8)},
            r"golden inputs are uint8 with shape \(1, 15, 3\); must be",
        ),
        ({"golden_inputs": np.zeros((1, 16, 3), np.int8)}, "golden inputs are int8 .*; must be uint8"),
        (
            {"golden_outputs": np.zeros((2, 1, 3), np.float32)},
            r"golden outputs are .*; must be float32 with shape \(1,",
        ),
        ({"golden_outputs": np.zeros((1, 1, 3))}, "golden outputs are float64 .*; must be float32"),
        ({"input": -1}, "input buffer is -1; there are"),
        ({"arena_bytes": 64}, "arena bytes is 64; the buffers need"),
        ({"ops": (Op("mean_rows", (1,), (2,)),) * 65536}, "65536 ops; at most 65535 are allowed"),
    ],
)
def test_bad_program_is_refused(good_program: Program, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        replace(good_program, **changes).validate()


def test_stored_bytes_and_kinds_of_tensors(good_program: Program) -> None:
    stored = {tensor.name: (tensor.stored_bytes, tensor.is_codes) for tensor in good_program.tensors}
    assert stored["pixel.scale"] == (12, False)
    assert stored["patch"] == (16 * 16 // 2, True)  # [7, 12] in tiles
    assert stored["patch.scale"] == (14, False)
    assert stored["proj"] == (16 * 8, True)
    assert stored["positions"] == (5 * 4, True)
