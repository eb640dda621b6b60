"""Building programs: inferred shapes, hidden scratch, planned buffers, and errors that name the op."""

from typing import Any

import numpy as np
import pytest

from lilliput.errors import ArtifactError, FailureError
from lilliput.program import reference
from lilliput.program.builder import ProgramBuilder, with_golden
from lilliput.program.op_shapes import attention_scratch_bytes
from lilliput.program.program import Program


def started(rows: int = 4, cols: int = 12) -> tuple[ProgramBuilder, int]:
    b = ProgramBuilder()
    x = b.input("image", rows, cols)
    ones = b.tensor("ones", role="constant", format="f32", values=np.ones((1, cols), np.float32))
    return b, b.emit("normalize", [x], [ones, ones])


def metadata(rows: int = 4, cols: int = 12, labels: int = 4) -> dict[str, Any]:
    image = {"height": rows, "width": 1, "channels": cols}
    return {"task": "image-classification", "labels": [str(index) for index in range(labels)], "image": image}


def test_shapes_names_and_scratch_are_inferred() -> None:
    b, y = started()
    y = b.emit("attention", [y], num_heads=2, head_dim=2, logit_scale=0.5, name="mix")
    y = b.emit("mean_rows", [y])
    program = b.build(output=y, metadata=metadata())
    described = [(buffer.name, buffer.dtype, buffer.rows, buffer.cols) for buffer in program.buffers]
    assert described == [
        ("image", "u8", 4, 12),
        ("normalize.0", "f32", 4, 12),
        ("mix", "f32", 4, 4),
        ("mix.scratch", "u8", 1, attention_scratch_bytes(4, 2)),
        ("mean_rows.2", "f32", 1, 4),
    ]
    assert program.ops[1].outputs == (2, 3)
    assert y == 4, "the handle is the buffer, and scratch has none"


def test_quantize_gives_two_handles() -> None:
    b, y = started()
    levels, scale = b.emit("quantize", [y], name="q")
    assert (levels, scale) == (2, 3)
    y = b.emit("select_row", [scale], row=3)
    program = b.build(output=y, metadata=metadata(labels=1))
    assert [buffer.name for buffer in program.buffers[2:4]] == ["q", "q.scale"]
    assert (program.buffers[2].rows, program.buffers[2].cols) == (4, 16)


def test_scratch_size_is_that_of_the_page() -> None:
    assert attention_scratch_bytes(65, 32) == 2 * 80 * 32 + 16 * 32 + 92 * 80
    assert attention_scratch_bytes(1, 1) == 2240


def test_vectors_are_one_row() -> None:
    b = ProgramBuilder()
    x = b.input("image", 1, 3)
    ones = b.tensor("ones", role="constant", format="f32", values=np.ones(3, np.float32))
    program = b.build(output=b.emit("normalize", [x], [ones, ones]), metadata=metadata(1, 3, 3))
    assert program.tensors[0].values.shape == (1, 3)


def test_float_attributes_are_rounded_to_float32() -> None:
    b, y = started()
    vector = b.tensor("v", role="norm", format="bf16", values=np.ones(12, np.float32))
    y = b.emit("layer_norm", [y], [vector, vector], eps=1e-6)
    program = b.build(output=b.emit("mean_rows", [y]), metadata=metadata(labels=12))
    assert program.ops[1].attributes == {"eps": float(np.float32(1e-6))}


def test_attributes_with_a_default_may_be_left_out() -> None:
    b, y = started()
    every = b.emit("attention", [y], num_heads=2, head_dim=2, logit_scale=0.5)
    one = b.emit("attention", [y], num_heads=2, head_dim=2, logit_scale=0.5, num_queries=1)
    program = b.build(output=b.emit("mean_rows", [every]), metadata=metadata(labels=4))
    assert [op.attributes["num_queries"] for op in program.ops[1:3]] == [0, 1]
    assert [(program.buffers[index].rows, program.buffers[index].cols) for index in (every, one)] == [(4, 4), (1, 4)]


def test_output_takes_no_arena() -> None:
    b, y = started()
    y = b.emit("mean_rows", [y])
    program = b.build(output=y, metadata=metadata(labels=12))
    assert program.buffers[y].offset == program.buffers[0].offset == 0
    assert program.arena_bytes == 4 * 12 * 4, "only the normalised image lives there"


@pytest.mark.parametrize(
    ("kind", "inputs", "tensors", "attributes", "message"),
    [
        ("soften", [1], [], {}, r"op 1 \(soften, here\): must be one of normalize, unfold"),
        ("mean_rows", [1, 1], [], {}, r"op 1 \(mean_rows, here\): has 2 inputs; must have 1"),
        ("mean_rows", [1], [0], {}, "has 1 tensors; must have 0"),
        ("normalize", [0], [0], {}, "has 1 tensors; must have 2"),
        ("select_row", [1], [], {}, r"attributes are \[\]; must be \['row'\]"),
        ("select_row", [1], [], {"row": 0, "column": 1}, r"attributes are \['column', 'row'\]; must be \['row'\]"),
        ("select_row", [1], [], {"row": 4}, "row is 4; must be at most 3"),
        ("select_row", [1], [], {"row": -1}, "row is -1; must be an integer, 0 to 4294967295"),
        ("select_row", [1], [], {"row": 1.0}, "row is 1.0; must be an integer"),
        ("attention", [1], [], {"num_heads": 5, "head_dim": 2, "logit_scale": 1.0}, "input is 4 x 12; must be 4 x 30"),
        (
            "attention",
            [1],
            [],
            {"num_heads": 2, "head_dim": 2, "logit_scale": 1.0, "num_queries": 4},
            "num_queries is 4; must be at most 3",
        ),
        ("attention", [1], [], {"num_heads": 2, "head_dim": 2}, r"attributes are \['head_dim', 'num_heads', 'num_que"),
        ("layer_norm", [1], [0, 0], {"eps": float("nan")}, "eps is nan; must be a finite float"),
        ("layer_norm", [1], [0, 0], {"eps": 1e-60}, "eps is 0.0; must be above 0"),
    ],
)
def test_impossible_op_is_refused_by_name(
    kind: str, inputs: list[int], tensors: list[int], attributes: dict[str, Any], message: str
) -> None:
    b, _ = started()
    with pytest.raises(ArtifactError, match=message):
        b.emit(kind, inputs, tensors, name="here", **attributes)


def test_unused_result_is_planned_and_allowed() -> None:
    b, y = started()
    b.emit("mean_rows", [y], name="unused")
    program = b.build(output=b.emit("select_row", [y], row=0), metadata=metadata(labels=12))
    program.validate()
    assert program.arena_bytes == 4 * 12 * 4 + 64


def test_golden_examples_are_what_the_reference_gives(good_program: Program) -> None:
    inputs = np.random.default_rng(1).integers(0, 256, (3, 16, 3), dtype=np.uint8)
    program = with_golden(good_program, inputs)
    np.testing.assert_array_equal(program.golden_inputs, inputs)
    np.testing.assert_array_equal(program.golden_outputs[:, 0], reference.run(good_program, inputs))
    assert len(good_program.golden_inputs) == 1, "the original is as it was"


def test_program_that_diverged_gets_no_golden_examples() -> None:
    b = ProgramBuilder()
    x = b.input("image", 1, 2)
    huge = b.tensor("huge", role="constant", format="f32", values=np.full((1, 2), 3e38, np.float32))
    program = b.build(output=b.emit("normalize", [x], [huge, huge]), metadata=metadata(1, 2, 2))
    inputs = np.array([[[0, 0]], [[0, 255]]], np.uint8)
    with pytest.raises(FailureError, match="golden example 1: the program's output is not finite"):
        with_golden(program, inputs)
