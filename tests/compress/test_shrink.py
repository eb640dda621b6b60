"""Structured pruning as a pass: sizes that are asked for are those of the model, of its settings and of the file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lilliput import artifact
from lilliput.compress.base import Claim
from lilliput.compress.groups import block_group, column_group, head_group, neuron_group, remove
from lilliput.compress.importance import column_importance, head_importance, least_important, normalized
from lilliput.compress.ledger import assert_ledger
from lilliput.compress.quantize import Quantization
from lilliput.compress.shrink import Shrinking
from lilliput.config import LayerSettings, ModelSettings, QuantizeSettings, ShrinkSettings, StemConvSettings
from lilliput.errors import FailureError, RecipeError
from lilliput.lower import lower
from lilliput.models.checkpoint import load_model, save_model
from lilliput.models.vit import ViT
from lilliput.program import reference
from lilliput.program.cost import macs
from lilliput.program.program import Program
from lilliput.train.calibration import Calibration, random_calibration

IMAGE = (8, 8, 1)
BASE = ModelSettings(patch_size=4, embed_dim=24, depth=3, num_heads=4, mlp_dim=40)
HYBRID = (StemConvSettings(channels=6), StemConvSettings(channels=10, stride=1))
EVERYTHING: dict[str, Any] = {"blocks": 1, "embed_dim": 19, "heads": 0.4, "neurons": 0.5, "steps": 3}
WITHOUT_BLOCKS = EVERYTHING | {"blocks": 0}
ARCHITECTURES: dict[str, tuple[ModelSettings, dict[str, Any]]] = {
    "class token": (BASE, EVERYTHING),
    "mean pooling, sinusoidal": (BASE.model_copy(update={"pool": "mean", "positions": "sinusoidal"}), EVERYTHING),
    "hybrid": (BASE.model_copy(update={"patch_size": 1, "stem": HYBRID}), EVERYTHING),
    "distillation token": (BASE.model_copy(update={"distillation": "token"}), EVERYTHING),
    "distillation head": (BASE.model_copy(update={"distillation": "head"}), EVERYTHING),
    "shared blocks": (BASE.model_copy(update={"depth": 2, "order": (0, 0, 1, 1)}), WITHOUT_BLOCKS),
}


def model_of(settings: ModelSettings = BASE) -> ViT:
    torch.manual_seed(0)
    model = ViT(settings, IMAGE, 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def shrink(model: ViT, calibration: Calibration | None = None, **settings: Any) -> Shrinking:
    work = Shrinking(ShrinkSettings.model_validate(settings))
    work.attach(model, calibration or random_calibration(model))
    return work


def lowered(model: ViT, **settings: Any) -> Program:
    Quantization(QuantizeSettings.model_validate(settings)).attach(model, random_calibration(model))
    return lower(model.eval(), {"labels": [str(label) for label in range(5)]})


def sizes(model: ViT) -> list[tuple[int, int]]:
    return [(layer.num_heads, layer.mlp_dim) for layer in model.settings.resolved_layers()]


@pytest.mark.parametrize("hidden", ["static", "dynamic"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shrunk_models_program_equals_its_simulation(name: str, hidden: str) -> None:
    """The bound of tests/test_lower.py."""
    settings, asked = ARCHITECTURES[name]
    whole = macs(lowered(model_of(settings), hidden=hidden))
    model = model_of(settings)
    work = shrink(model, **asked)
    program = lowered(model, hidden=hidden)
    assert macs(program) < 0.75 * whole
    claims = [Claim(**json.loads(json.dumps(claim.to_json()))) for claim in work.claims(model)]
    for subject in (model, program, artifact.from_bytes(artifact.to_bytes(program), "shrunk.lil")):
        assert_ledger(claims, subject, "export")
    images = np.random.default_rng(0).integers(0, 256, (64, *IMAGE), dtype=np.uint8)
    with torch.no_grad():
        simulated = model(torch.from_numpy(images).permute(0, 3, 1, 2).float()).numpy()
    difference = np.abs(simulated - reference.run(program, images.reshape(64, -1, IMAGE[2])))
    assert np.median(difference) <= 2e-5 * simulated.std()
    assert difference.max() <= 0.05 * simulated.std()
    assert simulated.std() > 0.01


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_asked_for_is_what_goes(name: str, tmp_path: Path) -> None:
    settings, asked = ARCHITECTURES[name]
    model = model_of(settings)
    work = shrink(model, **asked)
    blocks = len(settings.resolved_layers()) - asked["blocks"]
    assert len(model.blocks) == blocks == 2
    assert model.settings.embed_dim == 19
    heads, neurons = (sum(column) for column in zip(*sizes(model), strict=True))
    assert (heads, neurons) == (8 - round(0.4 * 8), 80 - round(0.5 * 80))
    save_model(model, tmp_path)
    loaded = load_model(tmp_path).eval()
    pixels = torch.rand(4, 1, 8, 8) * 255
    assert torch.equal(loaded(pixels), model(pixels))
    assert_ledger(work.claims(model), loaded, "finetune")


def test_it_is_a_function_of_model_and_examples() -> None:
    models = [model_of() for _ in range(2)]
    for model in models:
        shrink(model, **EVERYTHING)
    assert models[0].settings == models[1].settings
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_useless_heads_and_neurons_go_first() -> None:
    model = model_of()
    with torch.no_grad():
        for block, head in ((0, 2), (2, 0), (2, 3)):
            model.blocks[block].attn.proj.weight[:, 6 * head : 6 * head + 6] = 0.0
        for block, neuron in ((1, 7), (2, 39)):
            model.blocks[block].mlp.fc2.weight[:, neuron] = 0.0
    expected = model_of()
    expected.load_state_dict(model.state_dict())
    for group, block, indices in (
        (head_group, 0, [2]),
        (head_group, 2, [0, 3]),
        (neuron_group, 1, [7]),
        (neuron_group, 2, [39]),
    ):
        remove(expected, group(expected, block, indices))
    shrink(model, heads=3 / 12, neurons=2 / 120)
    assert model.settings == expected.settings
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())


def test_blocks_go_one_by_one_where_the_loss_is_least() -> None:
    model, expected = model_of(), model_of()
    for _ in range(2):
        losses = []
        for block in range(len(expected.blocks)):
            smaller = ViT(expected.settings, IMAGE, 5)
            smaller.load_state_dict(expected.state_dict())
            remove(smaller, block_group(smaller, block))
            losses.append(torch.cat(list(random_calibration(smaller).losses(16))).mean().item())
        remove(expected, block_group(expected, int(np.argmin(losses))))
    shrink(model, blocks=2)
    assert len(model.blocks) == 1
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_least_important_columns_go() -> None:
    model, expected = model_of(), model_of()
    order = np.argsort(column_importance(model, random_calibration(model), 512).numpy(), kind="stable")
    remove(expected, column_group(expected, order[:5].tolist()))
    shrink(model, embed_dim=19)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())


def test_every_block_keeps_a_head_and_a_neuron() -> None:
    model = model_of()
    with torch.no_grad():
        model.blocks[1].attn.proj.weight.zero_()  # none of its heads is needed
        model.blocks[2].mlp.fc2.weight.zero_()
    shrink(model, heads=0.75, neurons=117 / 120)
    assert sizes(model) == [(1, 1)] * 3


def looks(steps: int, reestimate: bool) -> int:
    """How often importance is looked for, and that what was asked for has gone."""
    model, count = model_of(), 0
    calibration = random_calibration(model)

    def losses(examples: int) -> Any:
        nonlocal count
        count += 1
        assert examples == 8
        return calibration.losses(examples)

    counting = Calibration(calibration.forward, losses)
    shrink(model, counting, heads=0.5, steps=steps, reestimate=reestimate, examples=8)
    assert sum(heads for heads, _ in sizes(model)) == 6
    return count


def test_importance_is_found_anew_before_each_step_that_removes() -> None:
    assert looks(3, True) == 3
    assert looks(3, False) == 1
    assert looks(100, True) == 6  # six heads go


def test_importance_that_is_found_anew_is_that_of_the_smaller_model() -> None:
    expected = model_of()
    for _ in range(6):
        importance = normalized(head_importance(expected, random_calibration(expected), 512))
        for block, heads in enumerate(least_important(importance, 1)):
            if heads:
                remove(expected, head_group(expected, block, heads))
    once, anew = model_of(), model_of()
    shrink(once, heads=0.5, steps=6, reestimate=False)
    shrink(anew, heads=0.5, steps=6)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in anew.state_dict().items())
    assert sizes(once) != sizes(anew)
    at_once = model_of()
    shrink(at_once, heads=0.5, steps=1)
    assert all(torch.equal(value, at_once.state_dict()[name]) for name, value in once.state_dict().items())


REFUSED = [
    (
        {"heads": 0.9},
        r"^shrink\.heads=0\.9 takes 11 of 12 heads, but each block keeps one \(3 blocks\); at most 0\.75$",
    ),
    ({"neurons": 0.99}, r"^shrink\.neurons=0\.99 takes 119 of 120 neurons, .* \(3 blocks\); at most 0\.975$"),
    ({"blocks": 1, "heads": 0.9}, r"takes 7 of 8 heads, but each block keeps one \(2 blocks\); at most 0\.75$"),
    ({"heads": 0.01}, r"^shrink\.heads=0\.01 takes none of 12 heads; at least 0\.084$"),
    ({"blocks": 3}, r"^shrink\.blocks=3: the model has 3 and one stays; at most 2$"),
    ({"embed_dim": 25}, r"^shrink\.embed_dim=25: the model is 24 wide; at most 23$"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_the_impossible_is_refused_with_what_is_possible(settings: dict[str, Any], message: str) -> None:
    model = model_of()
    with pytest.raises(RecipeError, match=message):
        shrink(model, **settings)
    assert model.settings == BASE


@pytest.mark.parametrize("settings", [{"heads": 0.75}, {"neurons": 0.975}, {"heads": 0.084}, {"blocks": 2}])
def test_what_a_refusal_names_is_possible(settings: dict[str, Any]) -> None:
    model = model_of()
    shrink(model, **settings)
    assert model.settings != BASE


def test_shares_are_possible_whichever_block_goes() -> None:
    """Of blocks with 4, 4 and 1 heads one goes: then 8 heads are left, or 5."""
    layers = tuple(LayerSettings(num_heads=heads, head_dim=3, mlp_dim=8) for heads in (4, 4, 1))
    model = model_of(BASE.model_copy(update={"layers": layers}))
    with pytest.raises(RecipeError, match=r"takes 4 of 5 heads, but each block keeps one \(2 blocks\); at most 0\.6$"):
        shrink(model, blocks=1, heads=0.74)
    shrink(model, blocks=1, heads=0.6)
    assert all(heads >= 1 for heads, _ in sizes(model))


def test_a_shared_block_cannot_go() -> None:
    with pytest.raises(RecipeError, match=r"^shrink\.blocks=1: blocks are shared here \(4 depths run 2\).*num_blocks"):
        shrink(model_of(ARCHITECTURES["shared blocks"][0]), blocks=1)


def test_a_product_of_two_cannot_be_cut() -> None:
    model = model_of(BASE.model_copy(update={"ranks": {"blocks.1.mlp.fc1": 3, "head": 2}}))
    with pytest.raises(RecipeError, match=r"^shrink: layer blocks\.1\.mlp\.fc1 is a product of two \(model\.ranks\)"):
        shrink(model, heads=0.5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"heads": 0.5}, ("attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight")),
        ({"neurons": 0.5}, ("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight")),
        ({"blocks": 1}, None),
    ],
)
def test_it_applies_to_what_it_may_cut(settings: dict[str, Any], expected: tuple[str, ...] | None) -> None:
    model = model_of()
    in_blocks = [name for name, _ in model.named_parameters() if name.startswith("blocks.")]
    applied = Shrinking(ShrinkSettings.model_validate(settings)).applies_to(model)
    assert applied == [name for name in in_blocks if expected is None or name.endswith(expected)]
    narrower = Shrinking(ShrinkSettings(embed_dim=20)).applies_to(model)
    assert {name for name, _ in model.named_parameters()} - set(narrower) == {
        *(f"blocks.{block}.{bias}.bias" for block in range(3) for bias in ("attn.qkv", "mlp.fc1")),
        "head.bias",
    }


BROKEN = r"after 'finetune' the guarantee of 'shrink' is broken: 3 blocks of 1 to 4 heads and 40 neurons, 24 wide"


@pytest.mark.parametrize("what", ["tensor", "settings", "heads", "block", "order"])
def test_a_model_of_other_sizes_breaks_the_claim(what: str) -> None:
    model = model_of()
    with torch.no_grad():
        model.blocks[1].attn.proj.weight.zero_()
    claims = shrink(model, heads=3 / 12).claims(model)
    assert_ledger(claims, model, "finetune")
    if what == "tensor":
        model.blocks[0].mlp.fc1.weight = torch.nn.Parameter(torch.zeros(40, 23))
    elif what == "settings":
        model.settings = model.settings.model_copy(update={"embed_dim": 23})
    elif what == "heads":
        model.blocks[0].attn.num_heads, model.blocks[0].attn.head_dim = 2, 12
    elif what == "block":
        del model.blocks[2]
    else:
        model.settings = model.settings.model_copy(update={"order": (0, 1, 2, 0)})
    with pytest.raises(FailureError, match=BROKEN):
        assert_ledger(claims, model, "finetune")


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight", "positions", "head.weight"])
def test_a_file_of_other_sizes_breaks_the_claim(name: str) -> None:
    model = model_of()
    claims = shrink(model, embed_dim=20).claims(model)
    program = lowered(model)
    assert_ledger(claims, program, "export")
    wider = tuple(
        replace(x, values=np.pad(x.values, ((0, 0), (0, 1)))) if x.name == name else x for x in program.tensors
    )
    missing = tuple(x for x in program.tensors if x.name != name)
    more = (*program.tensors, replace(program.tensors[0], name="blocks.3.attn.qkv.weight"))
    for tensors in (wider, missing, more):
        with pytest.raises(FailureError, match=r"after 'export' the guarantee of 'shrink' is broken: .*20 wide"):
            assert_ledger(claims, replace(program, tensors=tensors), "export")


def test_a_file_with_other_heads_breaks_the_claim() -> None:
    model = model_of()
    claims = shrink(model, embed_dim=20).claims(model)
    program = lowered(model)
    ops = tuple(
        replace(op, attributes={**op.attributes, "num_heads": 2, "head_dim": 12})
        if "num_heads" in op.attributes
        else op
        for op in program.ops
    )
    with pytest.raises(FailureError, match=r"the guarantee of 'shrink' is broken"):
        assert_ledger(claims, replace(program, ops=ops), "export")
