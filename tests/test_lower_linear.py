"""The linear layer alone, on 10,000 random inputs: every kernel gives the bits of the simulation."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lilliput import artifact
from lilliput.lower.emit import Emitter
from lilliput.models.layers import Linear, Mlp, reader
from lilliput.models.stack import StoredAsBf16, WeightQuantizer, push
from lilliput.models.straight_through import round_bf16
from lilliput.program.formats import WEIGHT_FORMATS
from lilliput.program.program import Program
from lilliput.runtime import isas
from lilliput.runtime._lil import ALIGNMENT, Model

INPUTS, OUTPUTS, HIDDEN, COUNT = 37, 18, 24, 10_000
BITS = (8, 6, 4)


def random_pixels(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Rows of pixels; among them rows of one value, and rows that are 0 but for a few."""
    pixels = rng.integers(0, 256, (COUNT, INPUTS), dtype=np.uint8)
    pixels[:: COUNT // 100] = rng.integers(0, 256, (100, 1), dtype=np.uint8)
    pixels[1 :: COUNT // 100] *= rng.random((100, INPUTS)) < 0.1
    return pixels


def quantized(linear: Linear, weight_format: str, bits: int) -> Linear:
    linear.input_bits = bits
    torch.nn.init.normal_(linear.bias)
    quantizer = WeightQuantizer(weight_format, linear.out_features)
    quantizer.search(linear.weight.detach())
    quantizer.scale.mul_(round_bf16(torch.rand(linear.out_features, 1) + 0.3))  # so that some weights are cut
    push(linear, "weight", quantizer)
    push(linear, "bias", StoredAsBf16())
    return linear


class Normalized:
    """An image program whose one row of pixels becomes floats of very different sizes, and these floats in torch."""

    def __init__(self, rng: np.random.Generator, columns: dict[str, Tensor]) -> None:
        size = 10.0 ** rng.uniform(-4, 2, INPUTS)
        self.scale, self.shift = (torch.from_numpy((size * rng.normal(0, a, INPUTS)).astype("f4")) for a in (0.02, 1))
        self.emit = Emitter(columns)
        constants = [self.emit.vector(name, "constant", getattr(self, name), "f32") for name in ("scale", "shift")]
        image = self.emit.builder.input("image", 1, INPUTS)
        self.floats = self.emit.builder.emit("normalize", [image], constants)

    def in_torch(self, pixels: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(pixels).float() * self.scale + self.shift

    def program(self, output: int) -> Program:
        image = {"height": 1, "width": 1, "channels": INPUTS}
        labels = [str(number) for number in range(self.emit.builder._buffers[output].cols)]
        metadata = {"task": "image-classification", "labels": labels, "image": image}
        return self.emit.builder.build(output=output, metadata=metadata)


def assert_same_bits(program: Program, pixels: NDArray[np.uint8], simulated: Tensor) -> None:
    model = Model(artifact.to_bytes(program))
    memory = np.zeros(model.arena_bytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    wanted = simulated.numpy().view(np.uint32)
    for isa in isas():
        model.use_isa(isa)
        outputs = np.empty((COUNT, model.output_cols), np.float32)
        model.run(memory[start : start + model.arena_bytes], pixels, outputs)
        assert np.array_equal(outputs.view(np.uint32), wanted), isa


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@torch.no_grad()
def test_linear(weight_format: str, bits: int) -> None:
    torch.manual_seed(bits)
    rng = np.random.default_rng([bits, WEIGHT_FORMATS[weight_format].id])
    linear = quantized(Linear(INPUTS, OUTPUTS), weight_format, bits)
    layer = Normalized(rng, {"linear": torch.arange(INPUTS)})
    program = layer.program(layer.emit.linear("linear", linear, layer.floats))
    pixels = random_pixels(rng)
    x = layer.in_torch(pixels)
    levels, _ = linear.quantize_input(x)
    assert levels.abs().max() == 2 ** (bits - 1) - 1
    assert_same_bits(program, pixels, linear(x))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@torch.no_grad()
def test_levels_with_constant_scales(weight_format: str, bits: int) -> None:
    """A feed-forward layer whose hidden levels often saturate."""
    torch.manual_seed(bits)
    rng = np.random.default_rng([bits, WEIGHT_FORMATS[weight_format].id, 1])
    layer = Normalized(rng, {"mlp.fc1": torch.arange(INPUTS), "mlp.fc2": torch.arange(HIDDEN)})
    pixels = random_pixels(rng)
    x = layer.in_torch(pixels)
    mlp = Mlp(INPUTS, HIDDEN, "relu")
    hidden = quantized(reader(mlp.fc1), weight_format, bits)(x).relu()
    fc2 = reader(mlp.fc2)
    fc2.fix_input_scales(round_bf16(3.0 * 2 ** (bits - 1) / hidden.amax(dim=0).clamp_min(1e-6)))
    levels, _ = quantized(fc2, weight_format, bits).quantize_input(hidden)
    assert 0.01 < (levels == 2 ** (bits - 1) - 1).float().mean() < 0.99
    assert_same_bits(layer.program(layer.emit.mlp("mlp", mlp, layer.floats, layer.floats)), pixels, mlp(x) + x)
