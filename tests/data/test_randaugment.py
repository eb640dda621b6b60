"""Colour operations against Pillow, geometric ones against a bilinear look-up in plain loops."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from lilliput.data import randaugment as ra


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photo(height: int = 16, width: int = 20, channels: int = 3) -> Tensor:
    """uint8 values [1, c, h, w] of a smooth picture with some noise, as float32, within 30..220."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    base = torch.stack([x * 5 + y, y * 7 + 10, 150 - x * 3 + y][:channels]).float()
    noise = torch.randint(0, 30, base.shape, generator=generator(5))
    return (base + noise + 20).clamp(30, 220).round()[None]


def to_pillow(images: Tensor) -> Image.Image:
    pixels = images[0].permute(1, 2, 0).to(torch.uint8).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def from_pillow(image: Image.Image) -> Tensor:
    pixels = np.atleast_3d(np.asarray(image)).astype(np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def strength(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [-1.0, -0.3, 0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("name", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("color", ImageEnhance.Color),
        ("contrast", ImageEnhance.Contrast),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_enhancements_equal_pillow(name: str, enhancer: type, value: float, channels: int) -> None:
    images = photo(channels=channels)
    expected = from_pillow(enhancer(to_pillow(images)).enhance(1.0 + 0.9 * value))
    # Pillow rounds in between (grey values, the mean, the smoothed image), and the factor 1.9 enlarges that.
    torch.testing.assert_close(ra.COLOUR_OPS[name](images, strength(value)), expected, rtol=0, atol=2.0)


@pytest.mark.parametrize(("value", "bits"), [(0.0, 8), (0.25, 7), (-0.5, 6), (0.74, 5), (-1.0, 4)])
def test_posterize_equals_pillow(value: float, bits: int) -> None:
    images = photo()
    expected = from_pillow(ImageOps.posterize(to_pillow(images), bits))
    assert torch.equal(ra.posterize(images, strength(value)), expected)


@pytest.mark.parametrize("value", [0.0, 0.25, -0.5, 1.0])
def test_solarize_equals_pillow(value: float) -> None:
    images = torch.arange(256.0).view(1, 1, 16, 16)  # every level, 255 included
    expected = from_pillow(ImageOps.solarize(to_pillow(images), threshold=round(256 * (1 - abs(value)))))
    assert torch.equal(ra.solarize(images, strength(value)), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_autocontrast_equals_pillow(channels: int) -> None:
    images = photo(channels=channels)
    result = ra.autocontrast(images, strength(0.5))
    torch.testing.assert_close(result, from_pillow(ImageOps.autocontrast(to_pillow(images))), rtol=0, atol=1.0)
    assert result.amin((2, 3)).tolist() == [[0.0] * channels]
    torch.testing.assert_close(result.amax((2, 3)), torch.full((1, channels), 255.0))


def test_equalize_flattens_the_histogram() -> None:
    # Low contrast, and darker towards one side: squares of uniform noise.
    images = (torch.rand(1, 3, 40, 50, generator=generator(2)).square() * 150 + 40).round()
    result = ra.equalize(images, strength(0.5))
    assert result.amin((2, 3)).tolist() == [[0.0] * 3]
    assert result.amax((2, 3)).tolist() == [[255.0] * 3]
    for channel in range(3):
        before, after = images[0, channel].flatten(), result[0, channel].flatten()
        # The share of pixels at or below a value is about that value: the histogram is flat.
        for value in (64.0, 128.0, 192.0):
            assert float((after <= value).float().mean()) == pytest.approx(value / 255, abs=0.06)
        # Order is kept: sorted by the old value, the new values never fall.
        assert bool((after[before.argsort()].diff() >= 0).all())


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_a_flat_image_stays(name: str) -> None:
    images = torch.full((2, 3, 6, 6), 77.0)
    images[1] = 0.0
    assert torch.equal(ra.COLOUR_OPS[name](images, torch.ones(2, 1, 1, 1)), images)


@pytest.mark.parametrize("name", ra.COLOUR_OPS)
def test_colour_operations_treat_images_apart(name: str) -> None:
    images = torch.cat([photo(), photo().flip(3) / 2, 255 - photo()])
    strengths = torch.tensor([0.4, -0.9, 1.0]).view(-1, 1, 1, 1)
    together = ra.COLOUR_OPS[name](images, strengths)
    assert together.shape == images.shape
    assert together.min() >= 0
    assert together.max() <= 255
    for index in range(3):
        alone = ra.COLOUR_OPS[name](images[index : index + 1], strengths[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-6, atol=1e-4)


def look_up(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Bilinear values of [h, w] at the places a map of pixels from the centre gives; zeros outside."""
    height, width = image.shape
    result = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            place = matrix @ [column + 0.5 - width / 2, row + 0.5 - height / 2, 1.0]
            x, y = place[0] + width / 2 - 0.5, place[1] + height / 2 - 0.5
            for v in (math.floor(y), math.floor(y) + 1):
                for u in (math.floor(x), math.floor(x) + 1):
                    if 0 <= v < height and 0 <= u < width:
                        result[row, column] += (1 - abs(y - v)) * (1 - abs(x - u)) * image[v, u]
    return result


@pytest.mark.parametrize("shape", [(12, 12), (9, 16), (16, 7)])
@pytest.mark.parametrize("name", ra.GEOMETRIC_OPS)
def test_geometric_operations_equal_plain_loops(name: str, shape: tuple[int, int]) -> None:
    height, width = shape
    images = photo(height, width, channels=1).expand(2, 1, height, width)
    strengths = torch.tensor([0.37, -0.81])
    maps = ra.geometric_map(name, strengths, height, width)
    sampled = ra.sample_affine(images, maps)
    for index in range(2):
        expected = look_up(images[index, 0].double().numpy(), maps[index].double().numpy())
        np.testing.assert_allclose(sampled[index, 0].numpy(), expected, atol=0.02)


def test_rotation_keeps_distances_and_turns_by_the_angle() -> None:
    matrix = ra.geometric_map("rotate", torch.tensor([1.0]), 10, 30)[0]
    torch.testing.assert_close(matrix[:2, :2] @ matrix[:2, :2].T, torch.eye(2))
    assert math.degrees(math.acos(float(matrix[0, 0]))) == pytest.approx(30.0, abs=1e-4)


def test_strongest_translation_and_shear() -> None:
    assert float(ra.geometric_map("translate_x", torch.tensor([1.0]), 10, 331)[0, 0, 2]) == pytest.approx(150.0)
    assert float(ra.geometric_map("translate_y", torch.tensor([-1.0]), 331, 10)[0, 1, 2]) == pytest.approx(-150.0)
    assert float(ra.geometric_map("shear_x", torch.tensor([1.0]), 10, 10)[0, 0, 1]) == pytest.approx(0.3)
    assert float(ra.geometric_map("shear_y", torch.tensor([1.0]), 10, 10)[0, 1, 0]) == pytest.approx(0.3)


def test_a_whole_pixel_shift_is_exact() -> None:
    images = photo(8, 10)
    maps = torch.eye(3)[None].clone()
    maps[0, 0, 2], maps[0, 1, 2] = 3.0, -2.0
    expected = torch.zeros_like(images)
    expected[:, :, 2:, :-3] = images[:, :, :-2, 3:]
    torch.testing.assert_close(ra.sample_affine(images, maps), expected, rtol=0, atol=1e-3)


def test_composed_maps_apply_the_first_operation_first() -> None:
    # A whole-pixel shift, then a half turn: both exact, and they do not commute.
    images = photo(8, 8)
    shift, turn = torch.eye(3)[None].clone(), torch.diag(torch.tensor([-1.0, -1.0, 1.0]))[None]
    shift[0, 0, 2] = 2.0
    one_by_one = ra.sample_affine(ra.sample_affine(images, shift), turn)
    torch.testing.assert_close(ra.sample_affine(images, shift @ turn), one_by_one, rtol=0, atol=1e-3)
    assert not torch.allclose(ra.sample_affine(images, turn @ shift), one_by_one, atol=1.0)


@pytest.mark.parametrize("name", ra.GEOMETRIC_OPS)
def test_tiny_strength_is_near_the_identity(name: str) -> None:
    images = photo(28, 28)
    maps = ra.geometric_map(name, torch.tensor([1e-4]), 28, 28)
    sampled = ra.sample_affine(images, maps)
    torch.testing.assert_close(sampled[:, :, 1:-1, 1:-1], images[:, :, 1:-1, 1:-1], rtol=0, atol=0.5)
    assert torch.equal(ra.geometric_map(name, torch.zeros(1), 28, 28), torch.eye(3)[None])


def test_magnitude_zero_changes_only_by_the_two_that_have_no_strength() -> None:
    images = photo().expand(300, -1, -1, -1)
    result = ra.randaugment(images, 1, 0.0, generator())
    unchanged = (result - images).abs().amax((1, 2, 3)) < 0.01
    # autocontrast and equalize are 2 of the 14 kinds: 43 of 300 are expected.
    assert 15 < int((~unchanged).sum()) < 80


def test_every_kind_is_drawn() -> None:
    images = photo().expand(500, -1, -1, -1)
    result = ra.randaugment(images, 1, 30.0, generator())
    # 14 kinds; 9 of them depend on the sign, so 4 colour blends, 5 maps give two pictures each, the other 5 one.
    assert len({tuple(image.round().flatten().tolist()) for image in result}) == 9 * 2 + 5


def test_two_operations_change_more_than_one_picture_and_keep_the_input() -> None:
    images = photo().repeat(200, 1, 1, 1)
    before = images.clone()
    pictures = {
        count: len(
            {tuple(image.round().flatten().tolist()) for image in ra.randaugment(images, count, 9.0, generator())}
        )
        for count in (1, 2)
    }
    assert pictures[2] > pictures[1]
    assert torch.equal(images, before)
