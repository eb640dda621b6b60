from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lilliput.config import AugmentSettings
from lilliput.data.augment import augment, mix, random_crop, random_flip

EVERYTHING = AugmentSettings(crop_padding=3, flip=True, randaugment_ops=2, mixup=0.8, cutmix=1.0)
SINGLE = {
    "crop": AugmentSettings(crop_padding=3),
    "flip": AugmentSettings(flip=True),
    "randaugment": AugmentSettings(randaugment_ops=2),
    "mixup": AugmentSettings(mixup=0.8),
    "cutmix": AugmentSettings(cutmix=1.0),
    "everything": EVERYTHING,
}
NUM_CLASSES = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 64, shape: tuple[int, int, int] = (9, 12, 3)) -> tuple[Tensor, Tensor]:
    images = torch.randint(1, 256, (count, *shape), generator=generator(99), dtype=torch.uint8)
    return images, torch.arange(count) % NUM_CLASSES


def test_disabled_is_the_identity() -> None:
    images, labels = batch()
    pixels, targets = augment(images, labels, AugmentSettings(), NUM_CLASSES, generator())
    assert pixels.dtype == targets.dtype == torch.float32
    assert torch.equal(pixels, images.permute(0, 3, 1, 2).float())
    assert torch.equal(targets, torch.eye(NUM_CLASSES)[labels])


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 12, 3)])
def test_batches_keep_shape_range_and_share(name: str, shape: tuple[int, int, int]) -> None:
    images, labels = batch(shape=shape)
    pixels, targets = augment(images, labels, SINGLE[name], NUM_CLASSES, generator())
    assert pixels.shape == (64, shape[2], *shape[:2])
    assert pixels.dtype == targets.dtype == torch.float32
    assert pixels.is_contiguous()
    assert pixels.min() >= 0
    assert pixels.max() <= 255
    assert targets.shape == (64, NUM_CLASSES)
    assert targets.min() >= 0
    torch.testing.assert_close(targets.sum(1), torch.ones(64))
    assert not torch.equal(pixels, images.permute(0, 3, 1, 2).float())


@pytest.mark.parametrize("name", SINGLE)
def test_a_batch_is_a_function_of_the_seed(name: str) -> None:
    images, labels = batch()
    first = augment(images, labels, SINGLE[name], NUM_CLASSES, generator(1))
    torch.rand(7)  # the global generator plays no part
    again = augment(images, labels, SINGLE[name], NUM_CLASSES, generator(1))
    other = augment(images, labels, SINGLE[name], NUM_CLASSES, generator(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("name", SINGLE)
def test_the_input_is_never_changed(name: str) -> None:
    images, labels = batch()
    before = images.clone(), labels.clone()
    pixels, targets = augment(images, labels, SINGLE[name], NUM_CLASSES, generator())
    pixels.zero_()
    targets.zero_()
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize("name", ["crop", "flip", "randaugment"])
def test_labels_are_preserved_where_images_are_not_mixed(name: str) -> None:
    images, labels = batch()
    _, targets = augment(images, labels, SINGLE[name], NUM_CLASSES, generator())
    assert torch.equal(targets, torch.eye(NUM_CLASSES)[labels])


def test_crops_are_windows_of_the_padded_image() -> None:
    padding, height, width = 2, 5, 7
    images = batch(400, (height, width, 3))[0].permute(0, 3, 1, 2)
    cropped = random_crop(images, padding, generator())
    padded = torch.zeros(400, 3, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
    padded[:, :, padding : padding + height, padding : padding + width] = images
    places = [(y, x) for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
    found = []
    for image, source in zip(cropped, padded, strict=True):
        matches = [place for place in places if torch.equal(image, window(source, place, height, width))]
        assert len(matches) == 1
        found.append(matches[0])
    assert set(found) == set(places)  # every shift occurs, the corners included


def window(image: Tensor, place: tuple[int, int], height: int, width: int) -> Tensor:
    return image[:, place[0] : place[0] + height, place[1] : place[1] + width]


def test_padding_is_zero() -> None:
    images = torch.full((200, 1, 4, 4), 255, dtype=torch.uint8)
    cropped = random_crop(images, 3, generator())
    assert set(cropped.unique().tolist()) == {0, 255}
    lit = (cropped > 0).sum((1, 2, 3))
    assert int(lit.min()) == 1  # shifted by 3 both ways
    assert int(lit.max()) == 16


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = batch(400)[0].permute(0, 3, 1, 2)
    flipped = random_flip(images, generator())
    mirrored = 0
    for image, source in zip(flipped, images, strict=True):
        if torch.equal(image, source.flip(2)):
            mirrored += 1
        else:
            assert torch.equal(image, source)
    assert 150 < mirrored < 250  # five standard deviations


def one_hot_of(count: int) -> Tensor:
    """Every image its own class, so that a target names the partner."""
    return torch.eye(count)


def shares(targets: Tensor) -> list[tuple[int, float]]:
    """(partner, share that stays) of each row, where the partner is not the image itself."""
    result = []
    for row, target in enumerate(targets):
        others = [index for index in target.nonzero()[:, 0].tolist() if index != row]
        result.append((others[0] if others else row, float(target[row])))
    return result


def test_mixup_mixes_images_as_it_mixes_targets() -> None:
    images = batch(50)[0].permute(0, 3, 1, 2).float()
    mixed, targets = mix(images, one_hot_of(50), 0.7, 0.0, generator())
    expected = torch.einsum("nm,mchw->nchw", targets, images)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(targets.sum(1), torch.ones(50))
    assert sum(0.0 < share < 1.0 for _, share in shares(targets)) > 40


def test_mixing_white_with_white_is_not_above_white() -> None:
    images = torch.full((2000, 1, 1, 1), 255.0)
    mixed, _ = mix(images, torch.ones(2000, 1), 1.0, 0.0, generator())
    assert mixed.max() <= 255  # two rounded products may add up to more
    assert mixed.min() > 254.99


@pytest.mark.parametrize("shape", [(9, 12, 3), (8, 8, 1)])
def test_cutmix_share_equals_the_pasted_area(shape: tuple[int, int, int]) -> None:
    images = batch(100, shape)[0].permute(0, 3, 1, 2).float()
    # Every pixel tells its image apart, so that each pasted pixel can be counted.
    images[:] = torch.arange(100.0).view(-1, 1, 1, 1)
    mixed, targets = mix(images, one_hot_of(100), 0.0, 1.0, generator())
    sizes = set()
    for row, (partner, share) in enumerate(shares(targets)):
        pasted = mixed[row, 0] != row
        assert bool((mixed[row, :, pasted] == partner).all())
        if partner != row:
            assert share == pytest.approx(1.0 - float(pasted.float().mean()), abs=1e-6)
        lines, columns = pasted.any(1), pasted.any(0)
        assert torch.equal(pasted, lines[:, None] & columns[None, :])  # a box ...
        for line in (lines, columns):  # ... without gaps
            assert int((line[1:] & ~line[:-1]).sum() + line[0]) <= 1
        sizes.add(int(pasted.sum()))
    assert len(sizes) > 12


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixup_shares_follow_the_beta_distribution(alpha: float) -> None:
    count = 4000
    images = torch.arange(float(count)).view(-1, 1, 1, 1)
    # With two classes, a row of class 0 whose partner is of class 1 shows its share directly.
    labels = torch.arange(count) % 2
    _, targets = mix(images, torch.eye(2)[labels], alpha, 0.0, generator())
    kept = targets[torch.arange(count), labels]
    kept = kept[kept < 1.0]  # partners of the other class: about half
    assert 1500 < len(kept) <= count
    assert float(kept.mean()) == pytest.approx(0.5, abs=0.05)
    # Beta(a, a) has the variance 1 / (4 (2a + 1)).
    assert float(kept.var()) == pytest.approx(1.0 / (4.0 * (2.0 * alpha + 1.0)), rel=0.15)


def test_cutmix_keeps_half_of_an_unclipped_image_on_average() -> None:
    images = torch.zeros(4000, 1, 32, 32)
    labels = torch.arange(4000) % 2
    _, targets = mix(images, torch.eye(2)[labels], 0.0, 1.0, generator())
    kept = targets[torch.arange(4000), labels]
    kept = kept[kept < 1.0]
    # E[lambda] is 1/2 for Beta(1, 1); the border clips boxes, so somewhat more than half stays, and never all.
    assert 0.55 < float(kept.mean()) < 0.72


def test_with_both_each_image_gets_one_of_them() -> None:
    images = torch.arange(1.0, 201.0).view(-1, 1, 1, 1).expand(200, 1, 16, 16)
    mixed, _ = mix(images, one_hot_of(200), 1.0, 1.0, generator())
    kinds = {"mixup": 0, "cutmix": 0}
    for row, image in enumerate(mixed):
        values = image.unique().tolist()
        if len(values) == 2 or values == [row + 1.0]:
            kinds["cutmix"] += 1
            assert row + 1.0 in values
        else:
            kinds["mixup"] += 1
    assert kinds["mixup"] > 60
    assert kinds["cutmix"] > 60


@pytest.mark.parametrize("change", [random_flip, lambda images, g: random_crop(images, 2, g)])
def test_one_image_alone_works(change: Callable[[Tensor, Any], Tensor]) -> None:
    assert change(batch(1)[0].permute(0, 3, 1, 2), generator()).shape == (1, 3, 9, 12)


@pytest.mark.parametrize("count", [1, 2])
def test_tiny_batches_work(count: int) -> None:
    images, labels = batch(count)
    pixels, targets = augment(images, labels, EVERYTHING, NUM_CLASSES, generator())
    assert pixels.shape == (count, 3, 9, 12)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
