"""N of every M consecutive inputs: which are kept, in the order of the program, along the schedule, and as a claim."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lilliput import artifact
from lilliput.compress.ledger import assert_ledger
from lilliput.compress.prune import Pruning, count_groups, cubic_sparsity, mask_layers, pattern_masks
from lilliput.compress.quantize import Quantization
from lilliput.config import ModelSettings, PruneSettings, QuantizeSettings, StemConvSettings
from lilliput.errors import FailureError
from lilliput.lower import lower
from lilliput.models.stack import base_of
from lilliput.models.vit import ViT
from lilliput.program.program import Program
from lilliput.train.calibration import random_calibration


def in_order(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Columns as they are."""
    return {name: torch.arange(weight.shape[1]) for name, weight in weights.items()}


def model_with_stem() -> ViT:
    """The stem's columns are in another order in the program; 27, 28 and 22 inputs are no multiples of 4 or 8."""
    torch.manual_seed(0)
    stem = (StemConvSettings(channels=7),)
    settings = ModelSettings(patch_size=2, embed_dim=16, depth=1, num_heads=2, mlp_dim=22, stem=stem)
    return ViT(settings, (8, 8, 3), 5)


def pruned(pattern: tuple[int, int]) -> tuple[ViT, Pruning]:
    model = model_with_stem()
    work = Pruning(PruneSettings(pattern=pattern))
    work.attach(model, random_calibration(model))
    work.finish(model)
    return model, work


def program_of(model: ViT) -> Program:
    Quantization(QuantizeSettings(hidden="dynamic")).attach(model, random_calibration(model))
    return lower(model, {"labels": list("abcde")})


def groups_of(weight: np.ndarray, pattern: tuple[int, int]) -> list[tuple[np.ndarray, int]]:
    """Every group of every row, and how many weights it may keep."""
    keep, size = pattern
    starts = range(0, weight.shape[1], size)
    return [(row[i : i + size], -(-keep * len(row[i : i + size]) // size)) for row in weight for i in starts]


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8), (3, 5), (1, 64)])
def test_every_group_keeps_its_largest(pattern: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weights = {"whole": torch.randn(6, 40), "short": torch.randn(5, 11), "one": torch.randn(3, 1)}
    masks = pattern_masks(weights, 1.0, PruneSettings(pattern=pattern), in_order(weights))
    for name, weight in weights.items():
        masked = groups_of((weight * masks[name]).numpy(), pattern)
        for (group, _), (left, limit) in zip(groups_of(weight.numpy(), pattern), masked, strict=True):
            kept = np.sort(np.abs(left[left != 0]))
            assert kept.tolist() == np.sort(np.abs(group))[-limit:].tolist()


def test_groups_are_those_of_the_program() -> None:
    torch.manual_seed(0)
    weight, columns = torch.randn(6, 11), {"a": torch.randperm(11)}
    masks = pattern_masks({"a": weight}, 0.7, PruneSettings(pattern=(2, 4)), columns)
    moved = {"a": weight[:, columns["a"]]}
    assert torch.equal(
        masks["a"][:, columns["a"]], pattern_masks(moved, 0.7, PruneSettings(pattern=(2, 4)), in_order(moved))["a"]
    )


def test_ties_and_zeros_make_no_group_keep_more_or_less() -> None:
    weights = {"ties": torch.ones(3, 10), "zeros": torch.zeros(3, 10)}
    masks = pattern_masks(weights, 1.0, PruneSettings(pattern=(2, 4)), in_order(weights))
    for mask in masks.values():
        assert mask.tolist() == [[1, 1, 0, 0, 1, 1, 0, 0, 1, 0]] * 3


def test_groups_that_lose_the_least_come_first() -> None:
    """Losses 1 + 2, 0.1 + 0.2 and 3 + 3: half of the groups (two of four) are the second and that without a loss."""
    weights = {"a": torch.tensor([[9.0, 1, 2, 9, 0.1, 7, 7, 0.2]]), "b": torch.tensor([[3.0, -3, 4, 4, 0, 5, 0, 5]])}
    masks = pattern_masks(weights, 0.5, PruneSettings(pattern=(2, 4)), in_order(weights))
    assert masks["a"].tolist() == [[1, 1, 1, 1, 0, 1, 1, 0]]
    assert masks["b"].tolist() == [[1, 1, 1, 1, 0, 1, 0, 1]]
    by_layer = pattern_masks(weights, 0.5, PruneSettings(pattern=(2, 4), scope="layer"), in_order(weights))
    assert all(torch.equal(by_layer[name], masks[name]) for name in masks)
    both = weights | {"a": weights["a"] * 0.01}  # now those of "a" lose less than any other with a loss
    masks = pattern_masks(both, 0.75, PruneSettings(pattern=(2, 4)), in_order(both))
    assert masks["a"].tolist() == [[1, 0, 0, 1, 0, 1, 1, 0]]
    assert masks["b"].tolist() == [[1, 1, 1, 1, 0, 1, 0, 1]]


def test_the_share_of_groups_follows_the_schedule() -> None:
    model, settings = model_with_stem(), PruneSettings(pattern=(2, 4), update_every=1, end_fraction=0.6)
    work = Pruning(settings)
    work.attach(model, random_calibration(model))
    columns = model.program_columns()

    def following() -> tuple[int, int]:
        masks = [layer.mask[:, columns[name]] for name, layer in mask_layers(model).items()]
        broken, groups = count_groups(masks, (2, 4))
        return groups - broken, groups

    _, groups = following()
    for step, share in ((0, 0.0), (30, 1 - 0.5**3), (60, 1.0), (99, 1.0)):
        work.before_step(model, step, 100)
        assert cubic_sparsity(step, 100, settings) == pytest.approx(share * 0.5)
        assert following() == (round(share * groups), groups)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 3), (4, 8)])
def test_the_pattern_holds_in_every_group_of_the_file(pattern: tuple[int, int]) -> None:
    model, work = pruned(pattern)
    claims = work.claims(model)
    decoded = artifact.from_bytes(artifact.to_bytes(program_of(model)), "pattern.lil")
    assert [record["claim"] for record in assert_ledger(claims, decoded, "export")] == ["sparsity", "pattern"]
    assert all(record["holds"] for record in assert_ledger(claims, model, "quantize"))
    weights = [tensor.values for tensor in decoded.tensors if tensor.role == "weight"]
    assert len(weights) == len(model.linears())
    groups = [group for weight in weights for group in groups_of(weight, pattern)]
    assert all(np.count_nonzero(group) <= limit for group, limit in groups)
    assert sum(np.count_nonzero(group) == limit for group, limit in groups) > 0.5 * len(
        groups
    )  # and not by being empty
    assert claims[1].values == {"pattern": list(pattern), "groups": len(groups)}
    kept = sum(limit for _, limit in groups)
    assert claims[0].values["zeros"] == sum(weight.size for weight in weights) - kept


def test_ledger_notices_a_group_that_is_too_full() -> None:
    model, work = pruned((2, 4))
    claims = work.claims(model)[1:]
    assert_ledger(claims, model, "prune")
    layer = mask_layers(model)["head"]
    with torch.no_grad():
        layer.mask[0, layer.mask[0] == 0] = torch.eye(int((layer.mask[0] == 0).sum()))[0]  # one more, in one group
        base_of(model.head, "weight").add_(1.0)
    message = r"guarantee of 'prune' is broken: at most 2 of every 4 consecutive inputs are not zero, in all \d+ groups"
    with pytest.raises(FailureError, match=message):
        assert_ledger(claims, model, "quantize")


def test_ledger_notices_a_group_that_is_too_full_in_the_file() -> None:
    model, work = pruned((2, 4))
    program, claims = program_of(model), work.claims(model)[1:]
    assert_ledger(claims, program, "export")

    def changed(name: str, change: int) -> Program:
        tensors = list(program.tensors)
        index = next(i for i, tensor in enumerate(tensors) if tensor.name == name)
        values = tensors[index].values.copy()
        values[0, np.flatnonzero(values[0] == 0)[:change]] = 1
        tensors[index] = replace(tensors[index], values=values)
        return replace(program, tensors=tuple(tensors))

    for name in ("stem.0.proj.weight", "head.weight"):
        assert_ledger(claims, changed(name, 0), "export")
        with pytest.raises(FailureError, match="at most 2 of every 4 consecutive inputs"):
            assert_ledger(claims, changed(name, 1), "export")
