"""The weight stack and simulated quantisation: definitions and the tests that prove them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lilliput.models.stack import (
    Mask,
    StoredAsBf16,
    WeightQuantizer,
    base_of,
    layer_of,
    levels_and_scale,
    push,
    quantize_rows,
    round_bf16,
    rows_of,
)
from lilliput.program import mathfn
from lilliput.program.formats import WEIGHT_FORMATS

FORMATS = ("int8", "int6", "int4", "pot4")


def test_pot_rounds_to_the_nearest_value_not_the_nearest_exponent() -> None:
    quantizer = WeightQuantizer("pot4", rows=1)
    # Between 2 and 4 the nearest-value threshold is 3; the nearest-exponent one would be 2.83.
    values = torch.tensor([[2.9, 3.1, 47.9, 48.1, 0.49, 0.51, 1.49, 1.51, -2.9, -3.1, 63.0]])
    assert quantizer.levels(values).tolist() == [[2, 4, 32, 64, 0, 1, 1, 2, -2, -4, 64]]


@pytest.mark.parametrize("name", FORMATS)
def test_quantising_is_idempotent_and_monotone(name: str) -> None:
    torch.manual_seed(0)
    quantizer = WeightQuantizer(name, rows=1)
    weights = torch.sort(torch.randn(1, 2000) * 30)[0]
    once = quantizer(weights).detach()
    assert torch.equal(quantizer(once).detach(), once)
    assert bool((once[0, 1:] >= once[0, :-1]).all())


@pytest.mark.parametrize("name", FORMATS)
def test_every_level_is_nearest(name: str) -> None:
    torch.manual_seed(0)
    quantizer = WeightQuantizer(name, rows=1)
    values = torch.rand(1, 500) * 2.4 * quantizer.max_level - 1.2 * quantizer.max_level
    grid = torch.from_numpy(WEIGHT_FORMATS[name].grid.astype("float32"))
    brute = grid[(values[0][:, None] - grid[None]).abs().argmin(1)]
    assert torch.equal(quantizer.levels(values)[0], brute)


@pytest.mark.parametrize("name", FORMATS)
def test_ties_go_to_the_lower_level_and_what_is_no_number_to_some_level(name: str) -> None:
    quantizer = WeightQuantizer(name, rows=1)
    grid = torch.from_numpy(WEIGHT_FORMATS[name].grid.astype("float32"))
    midpoints, least = (grid[1:] + grid[:-1]) / 2, torch.tensor(1e-5)
    assert torch.equal(quantizer.nearest(midpoints), grid[:-1])
    assert torch.equal(quantizer.nearest(midpoints + least * midpoints.abs()), grid[1:])
    assert torch.equal(quantizer.nearest(midpoints - least * midpoints.abs()), grid[:-1])
    inf = float("inf")
    assert quantizer.nearest(torch.tensor([inf, -inf])).tolist() == [grid[-1], grid[0]]
    assert float(quantizer.nearest(torch.tensor(float("nan")))) in grid.tolist()


@pytest.mark.parametrize("layers", ["none", "quantiser", "learned", "mask and quantiser"])
def test_some_rows_of_a_table_are_those_of_the_whole(layers: str) -> None:
    torch.manual_seed(0)
    module = nn.Module()
    module.table = nn.Parameter(torch.randn(9, 6))
    if layers == "mask and quantiser":
        push(module, "table", Mask(module.table))
    if layers != "none":
        quantizer = WeightQuantizer("int4", rows=9, learned=layers == "learned")
        quantizer.search(module.table.detach())
        push(module, "table", quantizer)
    ids, weights = torch.tensor([[3, 1, 3], [8, 0, 1]]), torch.randn(2, 3, 6)
    gradients = []
    for rows in (rows_of(module, "table", ids), module.table[ids]):
        torch.testing.assert_close(rows, module.table[ids], rtol=0, atol=0)
        (gradient,) = torch.autograd.grad((rows * weights).sum(), base_of(module, "table"))
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)


def test_zeros_survive_quantisation_by_construction() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(32, 16)
    push(linear, "weight", Mask(linear.weight))
    mask = layer_of(linear, "weight", Mask)
    assert mask is not None
    mask.mask.copy_((torch.rand(16, 32) > 0.6).float())
    quantizer = WeightQuantizer("pot4", rows=16)
    quantizer.search(linear.weight.detach())
    push(linear, "weight", quantizer)
    assert bool((linear.weight[mask.mask == 0] == 0).all())
    assert bool((base_of(linear, "weight")[mask.mask == 0] != 0).any())  # the base is untouched


@pytest.mark.parametrize("name", FORMATS)
def test_search_beats_the_plain_maximum_and_gives_bf16(name: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 64)
    quantizer = WeightQuantizer(name, rows=8)
    with torch.no_grad():
        quantizer.scale.copy_(weight.abs().amax(1, keepdim=True) / quantizer.max_level)
        plain = (quantizer(weight) - weight).square().sum(1)
        quantizer.search(weight)
        searched = (quantizer(weight) - weight).square().sum(1)
    assert bool((searched <= plain).all())
    assert bool(searched.sum() < plain.sum())
    assert torch.equal(quantizer.scale, quantizer.scale.to(torch.bfloat16).float())


def test_learned_scale_has_lsq_gradient() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 40)
    quantizer = WeightQuantizer("int4", rows=3, learned=True)
    with torch.no_grad():
        quantizer.scale.copy_(torch.tensor([[0.25], [0.125], [0.5]]))  # the second row clips
    quantizer(weight).sum().backward()
    scale = quantizer.scale.detach()
    v = weight / scale
    inside = v.abs() <= 7
    expected = torch.where(inside, v.clamp(-7, 7).round() - v, 7 * v.sign()).sum(1, keepdim=True) / (40 * 7) ** 0.5
    assert quantizer.scale.grad is not None
    torch.testing.assert_close(quantizer.scale.grad, expected, atol=1e-4, rtol=1e-4)


def test_weight_gradient_is_straight_through_inside_the_range_only() -> None:
    weight = torch.tensor([[0.3, -5.0, 100.0, -100.0]], requires_grad=True)
    WeightQuantizer("pot4", rows=1)(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.sampled_from([1e-35, 1e-6, 1.0, 1e20]))
def test_activation_levels_equal_the_reference(seed: int, columns: int, magnitude: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((5, columns)) * magnitude).astype(np.float32)
    x[0] = 0
    levels, scale = quantize_rows(torch.from_numpy(x))
    expected_levels, expected_scale = mathfn.quantize_rows(x)
    assert np.array_equal(levels.numpy().astype(np.int8), np.asarray(expected_levels)[..., :columns])
    assert np.array_equal(scale.numpy().reshape(-1), np.asarray(expected_scale).reshape(-1))


def test_bf16_rounding_equals_the_reference_and_passes_gradients() -> None:
    values = torch.randn(1000, requires_grad=True)
    rounded = round_bf16(values)
    from lilliput.program.formats import round_bf16 as reference

    assert np.array_equal(rounded.detach().numpy(), reference(values.detach().numpy()))
    rounded.sum().backward()
    assert values.grad is not None
    assert bool((values.grad == 1).all())
    layer = nn.LayerNorm(4)
    push(layer, "weight", StoredAsBf16())
    assert torch.equal(layer.weight, torch.ones(4))


def test_levels_and_scale_multiply_back_exactly() -> None:
    torch.manual_seed(3)
    linear = nn.Linear(50, 20)
    quantizer = WeightQuantizer("int8", rows=20)
    quantizer.search(linear.weight.detach())
    push(linear, "weight", quantizer)
    levels, scale = levels_and_scale(linear, "weight")
    assert torch.equal(levels * scale[:, None], linear.weight.detach())
    assert bool((levels.abs() <= 127).all())
