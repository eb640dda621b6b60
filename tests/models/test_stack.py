"""The weight stack and simulated quantisation: definitions and the tests that prove them."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from lilliput.config import FitSettings
from lilliput.models.stack import (
    Mask,
    StoredAsBf16,
    WeightQuantizer,
    base_of,
    copy_of,
    layer_of,
    levels_and_scale,
    push,
    rows_of,
)
from lilliput.program.formats import WEIGHT_FORMATS
from lilliput.train.loop import parameter_groups

Array = NDArray[np.float64]
FORMATS = tuple(WEIGHT_FORMATS)


def test_pot_rounds_to_the_nearest_value_not_the_nearest_exponent() -> None:
    quantizer = WeightQuantizer("pot4", rows=1)
    # Between 2 and 4 the nearest-value threshold is 3; the nearest-exponent one would be 2.83.
    values = torch.tensor([[2.9, 3.1, 47.9, 48.1, 0.49, 0.51, 1.49, 1.51, -2.9, -3.1, 63.0]])
    assert quantizer.levels(values).tolist() == [[2, 4, 32, 64, 0, 1, 1, 2, -2, -4, 64]]


def test_the_threshold_between_powers_of_two_and_the_largest_relative_error() -> None:
    """Halfway in value, 1.5 * 2^k, for every k; there the error is 1/3, the largest one (log2's rounding: 41 %)."""
    quantizer = WeightQuantizer("pot4", rows=1)
    lower = 2.0 ** torch.arange(6)
    threshold, least = 1.5 * lower, 1.0 + 1e-5
    assert torch.equal(quantizer.levels((threshold / least)[None])[0], lower)
    assert torch.equal(quantizer.levels((threshold * least)[None])[0], 2 * lower)
    values = torch.cat([torch.linspace(0.75, 64.0, 20_001), threshold])[None]
    errors = (quantizer.levels(values) - values).abs() / values
    assert float(errors.max()) == pytest.approx(1 / 3, abs=1e-6)


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


@pytest.mark.parametrize("name", FORMATS)
def test_search_is_nearly_as_good_as_any_scale(name: str) -> None:
    torch.manual_seed(0)
    weight, quantizer = torch.randn(30, 64), WeightQuantizer(name, rows=30)
    quantizer.search(weight)
    base = weight.abs().amax(1, keepdim=True) / quantizer.max_level
    scales = [base * factor for factor in torch.logspace(-3, 3, 200, base=2.0).tolist()]
    errors = torch.stack([(quantizer.nearest(weight / s) * s - weight).square().sum(1) for s in scales])
    excess = (quantizer(weight).detach() - weight).square().sum(1) / errors.min(dim=0).values
    assert float(excess.mean()) < 1.12


@pytest.mark.parametrize("name", FORMATS)
def test_powers_of_two_are_the_best_there_are(name: str) -> None:
    """Of all, not of those few that are tried: rows of normal weights, with an outlier, of all sizes, of zeros."""
    torch.manual_seed(0)
    quantizer = WeightQuantizer(name, rows=12)
    weight = torch.randn(12, 64) * torch.logspace(-9, 9, 12)[:, None]
    weight[:4, 5] *= 30.0
    weight[7] = 0.0
    weight[8] = torch.tensor([1.0, 0.5]).repeat(32) * quantizer.max_level  # its own scale is a power of two
    quantizer.search(weight, power_of_two=True)
    found = quantizer.scale.detach()
    errors = {
        exponent: (quantizer.nearest(weight / 2.0**exponent) * 2.0**exponent - weight).square().sum(1)
        for exponent in range(-60, 61)
    }
    best = torch.stack(list(errors.values())).min(dim=0).values
    torch.testing.assert_close((quantizer(weight).detach() - weight).square().sum(1), best, rtol=1e-6, atol=0)
    assert bool((torch.frexp(found)[0] == 0.5).all())
    assert found[7] == 1.0
    assert found[8] == 1.0 and torch.equal(quantizer.row_scale(), found)


@pytest.mark.parametrize("size", [1e-38, 1e-25, 1e30])
def test_powers_of_two_stay_so_where_floats_end(size: float) -> None:
    quantizer = WeightQuantizer("pot4", rows=1)
    quantizer.search(torch.tensor([[1.0, -0.3, 0.7]]) * size, power_of_two=True)
    assert float(torch.frexp(quantizer.row_scale().detach())[0]) == 0.5


def test_powers_of_two_weigh_errors_too() -> None:
    weight, quantizer = torch.tensor([[1.0, 0.04]]), WeightQuantizer("int4", rows=1)
    quantizer.search(weight, torch.tensor([1.0, 0.0]), power_of_two=True)
    assert float(quantizer(weight)[0, 0]) == 1.0
    quantizer.search(weight, torch.tensor([0.0, 1.0]), power_of_two=True)
    assert abs(float(quantizer(weight)[0, 1]) - 0.04) < 0.01


def lsq_surrogate(weight: Array, scale: Array, at: tuple[Array, Array], name: str) -> Array:
    """LSQ in float64 as a function that can be differentiated: within the range `v = w / s` is rounded by adding what
    rounding adds at the point `at` (that is what straight-through means); beyond it is the range's end."""
    grid = WEIGHT_FORMATS[name].grid.astype(np.float64)
    v0 = at[0] / at[1]
    nearest = grid[np.abs(v0[..., None] - grid).argmin(-1)]
    inside = np.abs(v0) <= grid[-1]
    rounded: Array = np.where(inside, weight / scale + (nearest - v0), np.sign(v0) * grid[-1])
    return rounded * scale


@pytest.mark.parametrize("name", FORMATS)
def test_learned_scale_and_weight_have_lsq_gradients(name: str) -> None:
    """Esser et al. 2020, equations 1 to 3, against finite differences, each row's times g = 1 / sqrt(N * Q_P)."""
    torch.manual_seed(0)
    top = int(WEIGHT_FORMATS[name].grid.max())
    weight, upstream = torch.randn(3, 40), torch.randn(3, 40)
    scale = weight.abs().amax(1, keepdim=True) / top * torch.tensor([[1.2], [0.4], [0.8]])  # the last two clip
    quantizer = WeightQuantizer(name, rows=3, learned=True)
    with torch.no_grad():
        quantizer.scale.copy_(scale.to(torch.bfloat16))
    leaf = weight.clone().requires_grad_()
    output = quantizer(leaf)
    (output * upstream).sum().backward()
    w, s = weight.double().numpy(), quantizer.scale.detach().double().numpy()
    np.testing.assert_allclose(output.detach().numpy(), lsq_surrogate(w, s, (w, s), name), rtol=1e-5)
    step = 1e-6
    by_scale = (lsq_surrogate(w, s + step, (w, s), name) - lsq_surrogate(w, s - step, (w, s), name)) / (2 * step)
    by_weight = (lsq_surrogate(w + step, s, (w, s), name) - lsq_surrogate(w - step, s, (w, s), name)) / (2 * step)
    v, levels = w / s, quantizer.nearest(torch.from_numpy((w / s).astype(np.float32))).double().numpy()
    formula = np.where(np.abs(v) <= top, levels - v, top * np.sign(v))
    np.testing.assert_allclose(by_scale, formula, atol=1e-4)
    assert quantizer.scale.grad is not None and leaf.grad is not None
    expected = (by_scale * upstream.numpy()).sum(1, keepdims=True) / np.sqrt(40 * top)
    np.testing.assert_allclose(quantizer.scale.grad.numpy(), expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_allclose(leaf.grad.numpy(), by_weight * upstream.numpy(), atol=1e-5)


def test_a_learned_scale_cannot_cross_zero() -> None:
    """Driven down by steps far larger than it is, it stays positive, and can be learned on."""
    quantizer = WeightQuantizer("int4", rows=2, learned=True)
    optimizer = torch.optim.SGD([quantizer.scale], lr=3.0)
    with torch.no_grad():
        quantizer.scale.copy_(torch.tensor([[0.5], [0.25]]))
    weight = torch.tensor([[1.0, -2.0, 0.6], [0.1, 0.2, -0.3]])
    raw = []
    for _ in range(20):
        optimizer.zero_grad()
        quantizer(weight).abs().sum().backward()
        optimizer.step()
        raw.append(quantizer.scale.detach().clone())
        assert bool((quantizer.row_scale() > 0).all())
        assert bool(quantizer(weight).isfinite().all())
    assert min(float(one.min()) for one in raw) < 0  # the parameter did cross; the scale is its magnitude


def test_learned_scales_do_not_decay() -> None:
    linear = nn.Linear(6, 4)
    push(linear, "weight", WeightQuantizer("int4", rows=4, learned=True))
    groups = parameter_groups(linear, FitSettings(weight_decay=0.1))
    decays = {id(one): group["weight_decay"] for group in groups for one in group["params"]}
    quantizer = layer_of(linear, "weight", WeightQuantizer)
    assert quantizer is not None
    assert decays[id(quantizer.scale)] == 0.0 and decays[id(base_of(linear, "weight"))] == 0.1


@pytest.mark.parametrize("power_of_two", [False, True])
def test_the_mask_comes_before_ranges(power_of_two: bool) -> None:
    """What a masked weight is has no part in its row's scale, and w_q = mask * Q(w)."""
    torch.manual_seed(0)
    mask, weight = (torch.rand(5, 30) > 0.4).float(), torch.randn(5, 30)
    scales, values = [], []
    for masked in (0.0, 50.0):
        linear = nn.Linear(30, 5)
        with torch.no_grad():
            linear.weight.copy_(torch.where(mask == 0, masked, weight))
        push(linear, "weight", Mask(linear.weight))
        layer = layer_of(linear, "weight", Mask)
        assert layer is not None
        layer.mask.copy_(mask)
        quantizer = WeightQuantizer("pot4", rows=5)
        quantizer.search(linear.weight.detach(), power_of_two=power_of_two)
        push(linear, "weight", quantizer)
        assert torch.equal(linear.weight, mask * quantizer(base_of(linear, "weight")))
        scales.append(quantizer.scale.detach())
        values.append(linear.weight.detach())
    assert torch.equal(*scales) and torch.equal(*values)


def test_weight_gradient_is_straight_through_inside_the_range_only() -> None:
    weight = torch.tensor([[0.3, -5.0, 100.0, -100.0]], requires_grad=True)
    WeightQuantizer("pot4", rows=1)(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_biases_and_norms_can_be_stored_as_bf16() -> None:
    layer = nn.LayerNorm(4)
    push(layer, "weight", StoredAsBf16())
    assert torch.equal(layer.weight, torch.ones(4))


def test_a_copy_has_stacks_of_its_own() -> None:
    linear = nn.Linear(4, 3)
    push(linear, "weight", Mask(linear.weight))
    copied, x = copy_of(linear), torch.randn(2, 4)
    before = copied(x)
    push(linear, "bias", StoredAsBf16())
    assert torch.equal(copied(x), before)
    push(copied, "bias", StoredAsBf16())
    assert torch.equal(copied(x), linear(x))


def test_levels_and_scale_multiply_back_exactly() -> None:
    torch.manual_seed(3)
    linear = nn.Linear(50, 20)
    quantizer = WeightQuantizer("int8", rows=20)
    quantizer.search(linear.weight.detach())
    push(linear, "weight", quantizer)
    levels, scale = levels_and_scale(linear, "weight")
    assert torch.equal(levels * scale[:, None], linear.weight.detach())
    assert bool((levels.abs() <= 127).all())
