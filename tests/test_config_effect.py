"""Settings that would change nothing are refused, and what a saved recipe or a benchmark holds is not."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lilliput.config import ModelSettings, PruneSettings, Recipe, load_recipe, parse_recipe
from lilliput.errors import RecipeError

ROOT = Path(__file__).parent.parent
STUDENT = {"model": "elsewhere", "hidden_weight": 1.0}

# What is refused, the message, and what is taken instead.
IDLE: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "scores that are not kept": (
        {"prune": {"score_lr": 0.1}},
        r"prune: score_lr=0\.1 has no effect with criterion='magnitude'; take 'movement', or leave it out",
        {"prune": {"score_lr": 0.1, "criterion": "movement"}},
    ),
    "a floor of a pattern": (
        {"prune": {"layer_floor": 0.1, "pattern": [2, 4]}},
        r"prune: layer_floor=0\.1 has no effect with pattern=\[2, 4\], which takes the same share of each layer; leave",
        {"prune": {"layer_floor": 0.0, "pattern": [2, 4]}},
    ),
    "a floor of equal shares": (
        {"prune": {"layer_floor": 0.1, "scope": "layer"}},
        r"prune: layer_floor=0\.1 has no effect with scope='layer', which takes the same share of each layer; leave",
        {"prune": {"layer_floor": 0.1}},
    ),
    "an exponent": (
        {"factorize": {"alpha": 0.7}},
        r"factorize: alpha=0\.7 has no effect with method='whitened'; take 'asvd', or leave it out",
        {"factorize": {"alpha": 0.7, "method": "asvd"}},
    ),
    "examples that nobody looks at": (
        {"factorize": {"examples": 64, "method": "svd"}},
        r"factorize: examples=64 has no effect with method='svd', which looks at weights alone; take 'whitened' or",
        {"factorize": {"examples": 64}},
    ),
    "steps of nothing": (
        {"shrink": {"blocks": 1, "steps": 3}},
        r"shrink: steps=3 has no effect without heads or neurons to remove; give a share of those, or leave it out",
        {"shrink": {"neurons": 0.1, "steps": 3}},
    ),
    "looks before no steps": (
        {"shrink": {"embed_dim": 64, "reestimate": False}},
        r"shrink: reestimate=False has no effect without heads or neurons",
        {"shrink": {"heads": 0.5, "reestimate": False}},
    ),
    "a temperature of a choice": (
        {"prune": {"distill": {"kind": "hard", "temperature": 4.0}}},
        r"prune\.distill: temperature=4\.0 has no effect with kind='hard'; .* leave it out \(its default is 2\.0\)",
        {"prune": {"distill": {"temperature": 4.0}}},
    ),
    "a temperature of no logits": (
        {"train": {"distill": STUDENT | {"weight": 0.0, "temperature": 4.0}}},
        r"train\.distill: temperature=4\.0 has no effect with weight=0: .*; give a weight above 0, or leave it out",
        {"train": {"distill": STUDENT | {"weight": 0.1, "temperature": 4.0}}},
    ),
    "a choice that is not learned": (
        {"train": {"distill": STUDENT | {"weight": 0.0, "kind": "hard"}}},
        r"train\.distill: kind='hard' has no effect with weight=0: ",
        {"train": {"distill": STUDENT | {"weight": 0.0}}},
    ),
    "sizes given twice": (
        {"model": {"depth": 2, "layers": [{"num_heads": 2, "head_dim": 8, "mlp_dim": 16}]}},
        r"model\.depth=2 has no effect with model\.layers, which give every block's sizes; leave one of them out",
        {"model": {"layers": [{"num_heads": 2, "head_dim": 8, "mlp_dim": 16}]}},
    ),
}


@pytest.mark.parametrize("case", IDLE)
def test_a_setting_without_effect_is_refused_in_one_line(case: str) -> None:
    change, message, instead = IDLE[case]
    with pytest.raises(RecipeError, match=f"^recipe my.toml: {message}") as caught:
        parse_recipe({"name": "x", **change}, "my.toml")
    assert "\n" not in str(caught.value)
    taken = parse_recipe({"name": "x", **instead}, "my.toml")
    assert Recipe.model_validate_json(taken.model_dump_json()) == taken  # which gives every default, too


def test_a_model_that_a_pass_has_changed_keeps_the_sizes_that_it_began_with() -> None:
    layers = ({"num_heads": 2, "head_dim": 8, "mlp_dim": 16},)
    assert ModelSettings.model_validate({"depth": 2, "layers": layers}).resolved_layers()[0].mlp_dim == 16


def test_every_default_may_be_given() -> None:
    for recipe in sorted((ROOT / "recipes").glob("*.toml")):
        if 'command = "compress"' not in recipe.read_text():
            whole = load_recipe(recipe)
            assert Recipe.model_validate_json(whole.model_dump_json()) == whole
    assert PruneSettings(score_lr=1e-2, layer_floor=0.02, scope="layer") == PruneSettings(scope="layer")


@pytest.fixture(scope="module")
def passes() -> ModuleType:
    """The script that compares the passes."""
    spec = importlib.util.spec_from_file_location("benchmarks_passes", ROOT / "benchmarks" / "passes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")  # it imports its neighbour, blocks.py
        patch.setitem(sys.modules, spec.name, module)  # where its data class looks for its own module
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["digits", "fashion-mnist-vit"])
def test_every_variant_of_the_benchmark_is_a_recipe(passes: ModuleType, name: str) -> None:
    base = load_recipe(ROOT / "recipes" / f"{name}.toml")
    assert len(passes.VARIANTS) > 20
    for variant in passes.VARIANTS:
        recipe = passes.recipe_of(base, variant, 0)
        assert set(variant.passes) <= set(recipe.stages)
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe, variant.name
