"""The fp32 module of a text program: close to the integer one, and padding changes nothing."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from lilliput.peers.graph import as_torch
from lilliput.peers.inputs import parts_of
from lilliput.peers.sources import as_tensors
from lilliput.program import reference
from lilliput.program.ops import OPS
from lilliput.program.program import Program

Make = Callable[[str], Program]
RNG = np.random.default_rng(0)
SEQUENCES = [RNG.integers(0, 40, length).astype(np.uint32) for length in (1, 2, 9, 20, 5, 13)]


def outputs(program: Program, size: int, explicit: bool, sequences: Sequence[np.ndarray] = SEQUENCES) -> np.ndarray:
    module = as_torch(program, explicit)
    made = np.empty((len(sequences), program.buffers[program.output].cols), np.float32)
    for part in parts_of(list(sequences), size):
        made[part.rows] = module(*as_tensors(part)).numpy()
    return made


def test_module_is_close_to_the_reference(text_kind: str, text_program: Make) -> None:
    """What differs is the rounding of activations to int8."""
    program = text_program(text_kind)
    assert "linear_levels" in {op.kind for op in program.ops}
    expected = reference.run(program, SEQUENCES)
    made = outputs(program, 1, explicit=False)
    assert made.std() > 0.01
    assert np.abs(made - expected).max() <= 0.1 * np.abs(made).max()


@pytest.mark.parametrize("explicit", [False, True])
def test_padding_changes_nothing(text_kind: str, text_program: Make, explicit: bool) -> None:
    program = text_program(text_kind)
    alone = outputs(program, 1, explicit=False)
    for size in (2, len(SEQUENCES)):
        np.testing.assert_allclose(outputs(program, size, explicit), alone, rtol=1e-4, atol=1e-5)


def test_every_op_of_sequences_is_translated(text_program: Make) -> None:
    kinds = {op.kind for name in ("vectors", "classes of the first token", "bottlenecks and neighbors")
             for op in text_program(name).ops}  # fmt: skip
    assert {kind for kind, spec in OPS.items() if spec.only == "sequence"} <= kinds


def test_vectors_have_length_one(text_program: Make) -> None:
    np.testing.assert_allclose(np.linalg.norm(outputs(text_program("vectors"), 1, False), axis=1), 1.0, rtol=1e-5)


def test_gradients_are_off(text_program: Make) -> None:
    module = as_torch(text_program("vectors"))
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not torch.is_grad_enabled() or not module(torch.zeros(1, 3, dtype=torch.int64)).requires_grad
