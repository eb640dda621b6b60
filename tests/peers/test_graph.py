"""The fp32 module is the program with its weights dequantised: equal to the float model, close to the integer one."""

from operator import attrgetter

import numpy as np
import pytest
import torch

from lilliput.bench.images import random_images
from lilliput.compress.hidden import hidden_readers
from lilliput.compress.quantize import Quantization
from lilliput.config import LayerSettings, ModelSettings, QuantizeSettings, StemConvSettings
from lilliput.lower import lower
from lilliput.models.vit import ViT
from lilliput.peers.graph import as_torch
from lilliput.peers.inputs import as_pixels
from lilliput.peers.steps import Attention
from lilliput.program import reference
from lilliput.program.builder import ProgramBuilder
from lilliput.program.program import Program
from lilliput.train.calibration import random_calibration

HYBRID = (StemConvSettings(channels=6), StemConvSettings(channels=10, stride=1))
ARCHITECTURES = {
    "class token": (ModelSettings(patch_size=2, embed_dim=24, depth=2, num_heads=3, mlp_dim=40), (8, 8, 1)),
    "mean pooling": (
        ModelSettings(
            patch_size=4, embed_dim=20, depth=1, num_heads=2, mlp_dim=33, pool="mean", positions="sinusoidal"
        ),
        (8, 12, 3),
    ),
    "convolutions, then pixels": (
        ModelSettings(patch_size=1, embed_dim=16, depth=1, num_heads=2, mlp_dim=24, stem=HYBRID),
        (9, 7, 3),
    ),
    "convolution, then patches": (
        ModelSettings(patch_size=2, embed_dim=16, depth=1, num_heads=2, stem=HYBRID[:1]),
        (16, 8, 1),
    ),
    "ragged heads": (
        ModelSettings(patch_size=4, embed_dim=24, layers=(LayerSettings(num_heads=3, head_dim=7, mlp_dim=9),)),
        (8, 8, 1),
    ),
}


BOTH = pytest.mark.parametrize("hidden", ["dynamic", "static"])


def quantized(name: str, hidden: str = "dynamic") -> ViT:
    """`hidden`: where the scales of hidden activations come from."""
    torch.manual_seed(0)
    settings, shape = ARCHITECTURES[name]
    model = ViT(settings, shape, 5)
    model.set_normalization(np.full(shape[2], 120.0, np.float32), np.full(shape[2], 60.0, np.float32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    Quantization(QuantizeSettings.model_validate({"hidden": hidden})).attach(model, random_calibration(model))
    return model.eval()


def float_twin(model: ViT) -> ViT:
    """The same architecture with the dequantised weights and no quantiser, so that it computes in floats."""
    twin = ViT(model.settings, model.image_shape, model.num_classes)
    with torch.no_grad():
        for name, parameter in [*twin.named_parameters(), *twin.named_buffers()]:
            parameter.copy_(attrgetter(name)(model))
        for name, linear in hidden_readers(model).items():
            if linear.input_multiplier is not None:  # a part of the weight
                twin.linears()[name].weight.mul_(linear.input_multiplier * linear.input_scale())
    return twin.eval()


def outputs(program: Program, images: np.ndarray, explicit: bool = False) -> np.ndarray:
    result: np.ndarray = as_torch(program, explicit)(torch.from_numpy(as_pixels(images))).numpy()
    return result


def rows(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1, images.shape[3])


@pytest.mark.parametrize("explicit", [False, True])
@BOTH
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_module_is_the_float_model(name: str, hidden: str, explicit: bool) -> None:
    model = quantized(name, hidden)
    images = random_images(16, model.image_shape)
    made = outputs(lower(model, {"labels": list("abcde")}), images, explicit)
    with torch.no_grad():
        expected = float_twin(model)(torch.from_numpy(as_pixels(images))).numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(made, expected, atol=1e-4 * expected.std())


@BOTH
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_module_is_close_to_the_reference(name: str, hidden: str) -> None:
    """What differs is the rounding of activations to int8."""
    model = quantized(name, hidden)
    program = lower(model, {"labels": list("abcde")})
    assert ("linear_levels" in {op.kind for op in program.ops}) == (hidden == "static")
    images = random_images(64, model.image_shape)
    difference = outputs(program, images) - reference.run(program, rows(images))
    assert np.abs(difference).max() <= 0.2 * outputs(program, images).std()


def test_the_class_token_alone_asks_in_the_last_block() -> None:
    """The peers get the work that our program has, not more."""
    module = as_torch(lower(quantized("class token"), {"labels": list("abcde")}))
    attentions = [step for step in module.steps if isinstance(step, Attention)]
    assert [step.num_queries for step in attentions] == [0, 1]
    rows_of_context = []
    attentions[-1].register_forward_hook(lambda _module, _inputs, output: rows_of_context.append(output.shape[1]))
    module(torch.from_numpy(as_pixels(random_images(2, (8, 8, 1)))))
    assert rows_of_context == [1]


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("num_queries", [0, 1, 4])
def test_attention_of_the_first_tokens(explicit: bool, num_queries: int) -> None:
    x = torch.randn(2, 6, 3 * 2 * 5, generator=torch.Generator().manual_seed(0))
    every = Attention(2, 5, 0.4, 0, explicit=False)(x)
    first = Attention(2, 5, 0.4, num_queries, explicit)(x)
    torch.testing.assert_close(first, every[:, : num_queries or 6])


def test_every_op(good_program: Program) -> None:
    images = random_images(16, (4, 4, 3))
    expected = reference.run(good_program, rows(images))
    np.testing.assert_allclose(outputs(good_program, images), expected, atol=0.1 * np.abs(expected).max())


def mlp_program(activation: int, to_levels: bool) -> Program:
    """A feed-forward layer with a residual; the same function, whether its hidden activations are levels with constant
    scales or floats: powers of two are parts of the columns' codes here, of multipliers there."""
    rng = np.random.default_rng(5)
    builder = ProgramBuilder()

    def weight(codes: np.ndarray, scale: float) -> list[int]:
        vectors = [np.full((1, len(codes)), value, np.float32) for value in (scale, 0.125)]
        tensors = [builder.tensor("w", role="weight", format="int8", layout="tiles", values=codes.astype(np.int8))]
        return tensors + [builder.tensor("v", role="bias", format="bf16", values=vector) for vector in vectors]

    multiplier = 2.0 ** rng.integers(3, 7, (1, 21)).astype(np.float32)
    up, down = rng.integers(-127, 128, (21, 6)), rng.integers(-15, 16, (6, 21))
    ones = builder.tensor("one", role="constant", format="f32", values=np.full((1, 6), 1 / 64, np.float32))
    x = builder.emit("normalize", [builder.input("image", rows=10, cols=6)], [ones, ones])
    quantized = builder.emit("quantize", [x])
    if to_levels:
        factors = builder.tensor("m", role="scale", format="bf16", values=multiplier)
        tensors = [*weight(up, 2**-9), factors]
        levels = builder.emit("linear_levels", quantized, tensors, activation=activation)
        y = builder.emit("linear_add", [levels, levels, x], weight(down, 2**-12))
    else:
        hidden = builder.emit("linear", quantized, weight(up, 2**-9), activation=activation)
        y = builder.emit("linear_add", [*builder.emit("quantize", [hidden]), x], weight(down * multiplier / 8, 2**-9))
    image = {"height": 10, "width": 1, "channels": 6}
    metadata = {"task": "image-classification", "labels": list("abcdef"), "image": image}
    return builder.build(output=builder.emit("mean_rows", [y]), metadata=metadata)


@pytest.mark.parametrize("activation", [0, 1, 2, 3])
def test_levels_with_constant_scales_are_the_floats_that_they_stand_for(activation: int) -> None:
    floats, levels = (mlp_program(activation, to_levels) for to_levels in (False, True))
    images = random_images(16, (10, 1, 6))
    assert outputs(floats, images).std() > 0.1
    np.testing.assert_array_equal(outputs(levels, images), outputs(floats, images))
    for program in (floats, levels):
        difference = outputs(program, images) - reference.run(program, rows(images))
        assert np.abs(difference).max() <= 0.05 * outputs(program, images).std()


def test_windows_that_feed_no_product() -> None:
    builder = ProgramBuilder()
    x = builder.input("image", rows=20, cols=2)
    constants = [
        builder.tensor(name, role="constant", format="f32", values=np.array([[value, 1.0]], np.float32))
        for name, value in (("scale", 0.5), ("shift", -3.0))
    ]
    x = builder.emit("normalize", [x], tensors=constants)
    x = builder.emit("unfold", [x], height=4, width=5, kernel=3, stride=2, padding=1)
    y = builder.emit("select_row", [x], row=3)
    image = {"height": 4, "width": 5, "channels": 2}
    metadata = {"task": "image-classification", "labels": [str(n) for n in range(18)], "image": image}
    program = builder.build(output=y, metadata=metadata)
    images = random_images(3, (4, 5, 2))
    np.testing.assert_array_equal(outputs(program, images), reference.run(program, rows(images)))


def test_pixels_are_channels_first() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    assert as_pixels(image).dtype == np.float32
    np.testing.assert_array_equal(as_pixels(image)[0, 1], [[1, 4], [7, 10]])
