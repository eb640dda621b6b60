"""Running whole programs."""

from types import ModuleType

import numpy as np
import pytest

from lilliput.errors import InputError
from lilliput.program import reference, validation
from lilliput.program.ops import OPS
from lilliput.program.program import Program


def inputs(count: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, 16, 3)).astype(np.uint8)


def test_program_is_its_ops_one_after_another(good_program: Program) -> None:
    x = inputs(4)
    values: dict[int, np.ndarray] = {good_program.input: x}
    for op in good_program.ops:
        tensors = [good_program.tensors[index].values for index in op.tensors]
        results = reference.apply(op.kind, [values[index] for index in op.inputs], tensors, op.attributes)
        slots = zip(op.outputs, OPS[op.kind].outputs, strict=True)
        values.update(zip([index for index, slot in slots if not slot.scratch], results, strict=True))
    wanted = values[good_program.output][:, 0]
    got = reference.run(good_program, x)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, wanted)
    assert len(np.unique(got, axis=0)) == 4, "the examples differ"


def test_chunks_change_nothing(good_program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(7)
    whole = reference.run(good_program, x)
    monkeypatch.setattr(reference, "CHUNK_BYTES", 1)
    np.testing.assert_array_equal(reference.run(good_program, x), whole)


def test_golden_output_is_reproduced(good_program: Program) -> None:
    got = reference.run(good_program, good_program.golden_inputs)
    np.testing.assert_array_equal(got, good_program.golden_outputs[:, 0])


def test_no_examples_give_no_outputs(good_program: Program) -> None:
    assert reference.run(good_program, inputs(0)).shape == (0, 3)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.zeros((1, 16, 3), np.float32),
            r"input is float32 with shape \(1, 16, 3\); must be uint8 with shape \(n, 16, 3\)",
        ),
        (np.zeros((16, 3), np.uint8), r"input is uint8 with shape \(16, 3\); must be"),
        (np.zeros((1, 3, 16), np.uint8), r"input is uint8 with shape \(1, 3, 16\); must be"),
    ],
)
def test_other_inputs_are_refused(good_program: Program, x: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        reference.run(good_program, x)


def test_the_ids_that_a_program_knows_are_counted_once(
    text_models: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for each golden example or input: a file may have very many, and very many ops."""
    text_program: Program = text_models.text_program()
    counted: list[Program] = []
    count = validation.num_token_ids

    def counting(program: Program) -> int:
        counted.append(program)
        return count(program)

    monkeypatch.setattr(validation, "num_token_ids", counting)
    monkeypatch.setattr(reference, "num_token_ids", counting)
    text_program.validate()
    assert len(counted) == 1 < len(text_program.golden_inputs)
    reference.run(text_program, text_program.golden_inputs)
    assert len(counted) == 2
