"""Rounding with error feedback: exact where it can be computed by hand, and better than rounding to the nearest."""

import pytest
import torch
from torch import Tensor

from lilliput.compress.error_feedback import InputMoments, inverse_factor, output_error, round_with_feedback
from lilliput.models.stack import WeightQuantizer
from lilliput.program.formats import WEIGHT_FORMATS


def quantizer(weight_format: str, scales: list[float]) -> WeightQuantizer:
    made = WeightQuantizer(weight_format, len(scales))
    with torch.no_grad():
        made.scale.copy_(torch.tensor(scales)[:, None])
    return made


def correlated_inputs(count: int, dim: int) -> Tensor:
    """A few directions hold most of the variance, as in real layers; the means are not zero."""
    mixing = torch.randn(dim, dim) * torch.logspace(0, -1.5, dim)[:, None]
    return torch.randn(count, dim) @ mixing + torch.randn(dim)


def moments_of(x: Tensor, y: Tensor | None = None) -> InputMoments:
    moments = InputMoments.zeros(x.shape[1])
    for part, other in zip(x.split(100), (x if y is None else y).split(100), strict=True):
        moments.add(part, other)
    return moments


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@pytest.mark.parametrize("diagonal", ["identity", "of all sizes", "zero"])
def test_without_correlations_it_is_plain_rounding(weight_format: str, diagonal: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 200)
    sizes = {"identity": torch.ones(200), "of all sizes": torch.logspace(-6, 6, 200), "zero": torch.zeros(200)}
    hessian = torch.diag(sizes[diagonal].to(torch.float64))
    made = quantizer(weight_format, [0.25, 0.125, 0.03125, 2.0, 0.5])
    expected = made.nearest(weight / made.row_scale()) * made.row_scale()
    assert torch.equal(round_with_feedback(weight, hessian, made, 0.01), expected)


def test_two_columns_by_hand() -> None:
    """Both inputs are always equal, so only the sum of a row's weights counts: 0.4 + 0.4 is best rounded to 0 + 1.

    The first column's error is 0.4, which goes to the second in the ratio of H = [[1, 1], [1, 1]] (damped: 1 / 1.01).
    """
    hessian = torch.ones(2, 2, dtype=torch.float64)
    rounded = round_with_feedback(torch.tensor([[0.4, 0.4]]), hessian, quantizer("int8", [1.0]), 0.01)
    assert rounded.tolist() == [[0.0, 1.0]]
    assert output_error(torch.tensor([[0.4, 0.4]]), rounded, hessian) == pytest.approx(0.2**2)


def test_columns_with_large_inputs_are_rounded_first() -> None:
    """Those that come later make up for it: here the second column is by far the larger one."""
    hessian = torch.tensor([[1.0, 9.9], [9.9, 100.0]], dtype=torch.float64)
    rounded = round_with_feedback(torch.tensor([[0.0, 0.1]]), hessian, quantizer("int8", [1.0]), 1e-9)
    assert rounded.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_outputs_change_less_than_with_plain_rounding(weight_format: str) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(24, 150), correlated_inputs(1000, 150)
    hessian = moments_of(x).hessian
    made = WeightQuantizer(weight_format, 24)
    made.search(weight, importance=hessian.diagonal().float())
    plain = made.nearest(weight / made.row_scale()) * made.row_scale()
    rounded = round_with_feedback(weight, hessian, made, 0.01)
    assert output_error(weight, rounded, hessian) < 0.6 * output_error(weight, plain, hessian)
    assert torch.equal(made(rounded), rounded)  # it is on the grid
    levels = (rounded / made.row_scale()).unique().tolist()
    assert set(levels) <= set(WEIGHT_FORMATS[weight_format].grid.tolist())


def test_the_error_is_that_of_the_outputs_around_their_mean() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(6, 40), correlated_inputs(700, 40)
    rounded = weight + 0.1 * torch.randn(6, 40)
    change = x.double() @ (weight - rounded).double().T
    expected = float((change - change.mean(0)).square().sum())
    assert output_error(weight, rounded, moments_of(x).hessian) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_the_hessian_keeps_its_digits_beside_large_means(mean: float) -> None:
    torch.manual_seed(0)
    x = 0.1 * torch.randn(700, 40) + mean * torch.linspace(-1, 1, 40)
    centred = x.double() - x.double().mean(0)
    torch.testing.assert_close(moments_of(x).hessian, centred.T @ centred, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_of_few_examples_no_square_is_negative(count: int) -> None:
    torch.manual_seed(0)
    moments = InputMoments.zeros(64)
    for row in torch.randn(count, 64).split(1):
        moments.add(row, row)
    assert float(moments.hessian.diagonal().min()) >= 0
    assert float(moments.hessian.abs().max()) > 0 or count == 1


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    torch.manual_seed(0)
    hessian = moments_of(correlated_inputs(400, 50)).hessian
    factor = inverse_factor(hessian, 0.01)
    damped = hessian + torch.eye(50) * 0.01 * hessian.diagonal().mean()
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor, damped.inverse(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("damping", [1e-6, 1e-30])
@pytest.mark.parametrize("count", [1, 3, 400])
def test_singular_hessians_are_damped_until_they_can_be_factored(damping: float, count: int) -> None:
    """Few examples, channels that are always equal, and sizes of eight orders of magnitude."""
    torch.manual_seed(0)
    x = torch.randn(count, 96) * torch.logspace(-4, 4, 96) + 5
    x[:, 40] = x[:, 41]
    hessian, weight = moments_of(x).hessian, torch.randn(4, 96)
    made = WeightQuantizer("int4", 4)
    made.search(weight)
    rounded = round_with_feedback(weight, hessian, made, damping)
    assert bool(inverse_factor(hessian, damping).isfinite().all())
    assert torch.equal(made(rounded), rounded)
    nearest = made(weight)
    assert output_error(weight, rounded, hessian) < output_error(weight, nearest, hessian) or count == 1
    assert not torch.equal(rounded, nearest) or count == 1


def test_the_bias_takes_up_the_mean() -> None:
    torch.manual_seed(0)
    weight, y = torch.randn(6, 40), correlated_inputs(500, 40)
    x = y + 0.3 + 0.1 * torch.randn(500, 40)  # what the compressed model gives instead
    rounded, bias = weight + 0.1 * torch.randn(6, 40), torch.randn(6)
    new = moments_of(x, y).bias(weight, rounded, bias)
    before, after = y @ weight.T + bias, x @ rounded.T + new
    torch.testing.assert_close(before.mean(0), after.mean(0), atol=1e-4, rtol=1e-4)
    assert float((new - bias).abs().min()) > 1e-3


def test_a_search_with_importance_favours_what_is_multiplied_with_much() -> None:
    torch.manual_seed(0)
    weight = torch.randn(20, 64)
    importance = torch.logspace(3, -3, 64)
    errors = []
    for given in (None, importance):
        made = WeightQuantizer("pot4", 20)
        made.search(weight, given)
        errors.append(float(((made(weight) - weight).square() * importance).sum()))
    assert errors[1] < 0.9 * errors[0]
