"""Costs, counted by hand for the small ViT of tests/hostile_files."""

import numpy as np

from lilliput.program import cost
from lilliput.program.builder import ProgramBuilder
from lilliput.program.program import Program


def test_macs_are_those_of_the_integer_products(good_program: Program) -> None:
    by_op = [(op.kind, c) for op, c in zip(good_program.ops, cost.op_macs(good_program), strict=True) if c]
    assert by_op == [
        ("linear", 4 * 7 * 12),  # patches
        ("linear", 5 * 24 * 7),  # qkv of 5 tokens
        ("attention", 2 * 2 * 5 * 5 * 4),  # two products, two heads of 4
        ("linear_add", 5 * 7 * 8),
        ("linear", 5 * (16 + 8) * 7),  # two of three blocks of 16 outputs, the last of them 8 outputs
        ("linear_add", 5 * 7 * (16 + 8)),  # two of three blocks of 16 inputs
        ("linear", 1 * 3 * 7),
    ]
    assert cost.macs(good_program) == sum(count for _, count in by_op)


def test_an_attention_of_few_queries_costs_that_much_less() -> None:
    b = ProgramBuilder()
    ones = np.ones((1, 24), np.float32)
    constants = [b.tensor(name, role="constant", format="f32", values=ones) for name in ("scale", "shift")]
    x = b.emit("normalize", [b.input("image", 5, 24)], constants)
    for num_queries in (0, 1, 3):
        y = b.emit("attention", [x], num_heads=2, head_dim=4, logit_scale=0.5, num_queries=num_queries)
    image = {"height": 5, "width": 1, "channels": 24}
    metadata = {"task": "image-classification", "labels": [str(label) for label in range(8)], "image": image}
    program = b.build(output=b.emit("mean_rows", [y]), metadata=metadata)
    assert cost.op_macs(program) == [0, 2 * 2 * 5 * 5 * 4, 2 * 2 * 1 * 5 * 4, 2 * 2 * 3 * 5 * 4, 0]


def test_parameters_are_counted_on_the_levels(good_program: Program) -> None:
    counts = cost.parameter_counts(good_program)
    weights = {"patch": 7 * 12, "qkv": 24 * 7, "proj": 7 * 8, "fc1": 40 * 7, "fc2": 7 * 40, "head": 3 * 7}
    levels = [tensor.values for tensor in good_program.tensors if tensor.name in weights]
    assert counts.weights == sum(weights.values())
    assert counts.nonzero_weights == sum(int((values != 0).sum()) for values in levels)
    assert 0 < counts.nonzero_weights < counts.weights, "some are zero"
    biases, norms, embeddings = 7 + 24 + 7 + 40 + 7 + 3, 4 * 7, 7 + 2 * 5 * 7
    assert counts.parameters == counts.weights + biases + norms + embeddings
    assert counts.fp32_bytes == 4 * counts.parameters
    np.testing.assert_allclose(counts.sparsity, 1 - counts.nonzero_weights / counts.weights)


def test_program_without_weights_has_no_sparsity() -> None:
    assert cost.ParameterCounts(parameters=0, weights=0, nonzero_weights=0).sparsity == 0.0
