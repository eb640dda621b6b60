"""Functions with a gradient of their own: what they compute is the program's, and their gradient that of the same
written out with `detach`."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lilliput.models.layers import ACTIVATIONS
from lilliput.models.straight_through import (
    Activation,
    coarse_activation,
    level_product,
    quantize_channels,
    quantize_rows,
    round_bf16,
    round_ste,
    table_weights,
)
from lilliput.program import formats, mathfn

EXACT: dict[Activation, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "gelu": mathfn.coarse_gelu,
    "gelu_tanh": mathfn.coarse_gelu_tanh,
    "relu": mathfn.relu,
}


def inputs_of_all_sizes() -> Tensor:
    """Every 997th float32 between 1e-6 and 1e6 of either sign, 0, and the places where lines meet."""
    first, last = (int(np.float32(value).view(np.uint32)) for value in (1e-6, 1e6))
    positive = np.arange(first, last, 997, dtype=np.uint32).view(np.float32)
    joints = np.float32((np.arange(32) + 0.5) / 8)
    around = [joints, np.nextafter(joints, np.float32(0)), np.nextafter(joints, np.float32(9)), np.zeros(1, np.float32)]
    values = np.concatenate([positive, *around])
    return torch.from_numpy(np.concatenate([values, -values]))


@pytest.mark.parametrize("name", EXACT)
def test_coarse_activation_is_the_programs_bit_for_bit(name: Activation) -> None:
    x = inputs_of_all_sizes()
    with torch.no_grad():
        np.testing.assert_array_equal(coarse_activation(name, x).numpy(), EXACT[name](x.numpy()))


@pytest.mark.parametrize("name", EXACT)
def test_coarse_activation_has_the_smooth_gradient(name: Activation) -> None:
    gradients = []
    for activate in (ACTIVATIONS[name], lambda x: coarse_activation(name, x)):
        x = torch.linspace(-6, 6, 1001, requires_grad=True)
        torch.autograd.backward(activate(x).square().sum() / 2)
        gradients.append((x.grad, activate(x).detach()))
    (smooth, smooth_value), (coarse, coarse_value) = gradients
    slope = torch.autograd.functional.jvp(ACTIVATIONS[name], torch.linspace(-6, 6, 1001), torch.ones(1001))[1]
    torch.testing.assert_close(smooth, smooth_value * slope)
    torch.testing.assert_close(coarse, coarse_value * slope)  # its own value, and the slope of the smooth one
    assert torch.equal(smooth_value, coarse_value) == (name == "relu")


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.sampled_from([1e-35, 1e-6, 1.0, 1e20]))
def test_levels_of_rows_equal_the_reference(seed: int, columns: int, magnitude: float) -> None:
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
    assert np.array_equal(rounded.detach().numpy(), formats.round_bf16(values.detach().numpy()))
    rounded.sum().backward()
    assert values.grad is not None
    assert bool((values.grad == 1).all())


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Of a sum with varied weights, by each input."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    weights = torch.linspace(-1.0, 2.0, output.numel()).reshape(output.shape)
    return list(torch.autograd.grad((output * weights).sum(), leaves))


def written_out_round(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def test_rounding_is_half_to_even_with_gradient_1() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 3e9, 0.49999997], requires_grad=True)
    assert round_ste(x).tolist() == [0.0, 2.0, 2.0, 0.0, -2.0, 3e9, 0.0]
    assert torch.equal(*(gradients(f, x)[0] for f in (round_ste, written_out_round)))


@pytest.mark.parametrize("limit", [127.0, 31.0, 7.0])
def test_levels_of_channels_and_their_gradient(limit: float) -> None:
    torch.manual_seed(0)
    x, multiplier = 40.0 * torch.randn(6, 7, 24), torch.rand(24) + 0.5

    def written_out(x: Tensor) -> Tensor:
        return written_out_round((x * multiplier).clamp(-limit, limit))

    assert torch.equal(quantize_channels(x, multiplier, limit), written_out(x))
    (gradient,) = gradients(lambda x: quantize_channels(x, multiplier, limit), x)
    assert torch.equal(gradient, gradients(written_out, x)[0])
    assert bool((gradient == 0).any()) and bool((gradient != 0).any())


@pytest.mark.parametrize("rows", ["a scale each", "one for all"])
def test_products_of_levels_and_their_gradients(rows: str) -> None:
    torch.manual_seed(0)
    levels = torch.randint(-127, 128, (3, 5, 40)).float()
    weight, scale, bias = torch.randint(-64, 65, (12, 40)).float(), torch.rand(12) * 1e-2, torch.randn(12)
    row_scale = torch.rand(3, 5, 1) if rows == "a scale each" else 2.0**-5

    def written_out(levels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (levels @ weight.T) * scale * row_scale + bias

    def product(levels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return level_product(levels, weight, scale, row_scale, bias)

    inputs = levels, weight, bias
    assert torch.equal(product(*inputs), written_out(*inputs))
    for ours, expected in zip(gradients(product, *inputs), gradients(written_out, *inputs), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


def test_weights_of_a_table_and_their_gradient() -> None:
    torch.manual_seed(0)
    scores = 100.0 * torch.randn(2, 3, 6, 6)
    scores[..., 4:] = -math.inf  # masked

    def smooth(scores: Tensor) -> Tensor:
        return 127.0 * torch.exp2((scores - scores.amax(dim=-1, keepdim=True).detach()) / mathfn.STEPS)

    weights = table_weights(scores)
    assert torch.equal(weights, weights.round()) and bool((weights[..., 4:] == 0).all())
    assert bool((weights.amax(dim=-1) == 127).all())
    torch.testing.assert_close(weights, smooth(scores), rtol=0.0, atol=1.6)  # half a step of the table, and of a weight
    torch.testing.assert_close(gradients(table_weights, scores)[0], gradients(smooth, scores)[0])
