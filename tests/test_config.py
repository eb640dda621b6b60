"""Recipes: what is refused, and that each refusal names the field, the value and what is allowed."""

from pathlib import Path
from typing import Any

import pytest

from lilliput.compress_config import ImageCompressRecipe, TextCompressRecipe
from lilliput.config import BLOCK, SIX_BIT_BLOCK, ModelSettings, Recipe, load_recipe, parse_recipe
from lilliput.config.load import parse_settings
from lilliput.errors import RecipeError
from lilliput.program.formats import TILE_ROWS, WEIGHT_FORMATS

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"train": {"epoch": 3}}, r"unknown field 'train\.epoch'; allowed: batch_size, .*epochs"),
    "unknown table": ({"tain": {}}, r"unknown field 'tain'; allowed: augment, .*data, .*train"),
    "unknown field in a list": (
        {"model": {"stem": [{"chanels": 3}]}},
        r"unknown field 'model\.stem\.0\.chanels'; allowed: channels, kernel_size, padding, stride \(and 1 more\)",
    ),
    "missing field": (
        {"model": {"layers": [{"num_heads": 2, "head_dim": 8}]}},
        r"model\.layers\.0\.mlp_dim is missing",
    ),
    "wrong type": ({"train": {"epochs": "many"}}, r"train\.epochs: .*valid integer, got 'many'"),
    "a bool for a number": ({"train": {"lr": True}}, r"train\.lr: .*valid number, got True"),
    "a number for a table": ({"train": 3}, r"train: .*object, got 3"),
    "out of range": ({"train": {"epochs": 0}}, r"train\.epochs: .*greater than or equal to 1, got 0"),
    "not finite": ({"train": {"lr": float("nan")}}, r"train\.lr: .*finite number, got nan"),
    "stage without its need": ({"stages": ["train", "export"]}, r"'export' needs 'quantize' before it; got \['train'"),
    "impossible order": ({"stages": ["train", "quantize", "prune"]}, r"'prune' cannot follow 'quantize'"),
    "no stage": ({"stages": []}, r"stages: .*at least 1 item"),
    "no pixels": ({"data": {"image_size": [0, 8]}}, r"data\.image_size\.0: .*greater than or equal to 1, got 0"),
    "unknown stage": ({"stages": ["train", "nope"]}, r"stages\.1: Input should be 'train', 'share', .* got 'nope'"),
    "heads": ({"model": {"num_heads": 3}}, r"num_heads=3 does not divide embed_dim=128; allowed: \[1, 2, 4, 8"),
    "unknown format": ({"quantize": {"weight_format": "int3"}}, r"'int4', 'pot4', 'apot4' or 'apot6', got 'int3'"),
    "a format that cannot be": (
        {"quantize": {"weight_format": "pot6"}},
        r"quantize\.weight_format: 'pot6' is no weight format: .* no whole levels .* take pot4, or for 6 bits apot6",
    ),
    "the same of one layer": ({"quantize": {"formats": {"head": "pot6"}}}, r"quantize\.formats\.head: 'pot6' is no"),
    "unknown data": ({"data": {"name": "mnist"}}, r"data\.name: .*'digits', 'fashion-mnist', 'cifar10' or 'folder'"),
    "preset changed": ({"model": {"preset": "vit-413k", "depth": 6}}, r"preset 'vit-413k' fixes the architecture"),
    "a name that leaves the folder": ({"name": "../x"}, r"name: .*got '\.\./x'"),
    "a guard that cannot hold": ({"prune": {"sparsity": 0.99}}, r"layer_floor=0\.02 must be at most 1 - sparsity"),
    "blocks that the runtime would not skip": (
        {"prune": {"block": [8, 8]}},
        r"block=\[8, 8\] must be \[outputs, inputs\], multiples of 16 and 8: the blocks that the runtime skips",
    ),
    "blocks of nothing": ({"prune": {"block": [0, 8]}}, r"block=\[0, 8\] must be"),
    "a block of three sides": ({"prune": {"block": [16, 8, 1]}}, r"prune\.block"),
    "narrow blocks of wide codes": (
        {"prune": {"block": [16, 8]}, "quantize": {"weight_format": "int6"}},
        r"prune\.block=\[16, 8\]: inputs must be a multiple of 16 with format 'int6'",
    ),
    "a schedule that ends before it starts": (
        {"prune": {"start_fraction": 0.8, "end_fraction": 0.5}},
        r"start_fraction=0\.8 must be below end_fraction=0\.5",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe({"name": "x", **change}, "my.toml")
    assert str(caught.value).startswith("recipe my.toml: ")
    assert "\n" not in str(caught.value)


def test_recipes_of_the_project_are_valid() -> None:
    kinds: dict[str, type[Recipe | TextCompressRecipe | ImageCompressRecipe]] = {
        "cifar10": Recipe,
        "deit-pot4": ImageCompressRecipe,
        "digits": Recipe,
        "fashion-mnist-vit": Recipe,
        "fashion-mnist": Recipe,
        "minilm-pot4": TextCompressRecipe,
        "minilm-small-words": TextCompressRecipe,
    }
    recipes = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
    assert [path.stem for path in recipes] == list(kinds)
    for path in recipes:
        assert load_recipe(path, None, kinds[path.stem]).name == path.stem


def test_a_recipe_of_the_other_command_is_refused(tmp_path: Path) -> None:
    (tmp_path / "compress.toml").write_text('command = "compress"\n')
    with pytest.raises(RecipeError, match=r"compress\.toml: it is one of `lil compress`$"):
        load_recipe(tmp_path / "compress.toml")
    (tmp_path / "run.toml").write_text('command = "run"\n')
    for kind in (TextCompressRecipe, ImageCompressRecipe):
        assert load_recipe(tmp_path / "compress.toml", None, kind).command == "compress"
        with pytest.raises(RecipeError, match=r"run\.toml: it is one of `lil run`$"):
            load_recipe(tmp_path / "run.toml", None, kind)


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[train]\nepochs = 3\n")
    overrides = ["train.epochs=5", "quantize.weight_format=int8", "augment.flip=true", 'stages=["train", "quantize"]']
    recipe = load_recipe(path, overrides)
    assert (recipe.name, recipe.train.epochs, recipe.quantize.weight_format) == ("r", 5, "int8")
    assert recipe.augment.flip and recipe.stages == ("train", "quantize")


@pytest.mark.parametrize("override", ["train.epochs", "train..x=3", "=3"])
def test_a_malformed_override_shows_how_to_write_one(override: str) -> None:
    with pytest.raises(RecipeError, match=r"--set .*: write it as stage\.field=value"):
        load_recipe(Path(__file__).parent.parent / "recipes" / "digits.toml", [override])


def test_a_missing_recipe_and_one_that_is_not_toml(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.toml: cannot be read \(No such file or directory\)"):
        load_recipe(tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_text("[train\n")
    with pytest.raises(RecipeError, match=r"bad\.toml: not valid TOML"):
        load_recipe(tmp_path / "bad.toml")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000)
    with pytest.raises(RecipeError, match=r"deep\.toml: not valid TOML"):
        load_recipe(tmp_path / "deep.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"binary\.toml: not valid TOML"):
        load_recipe(tmp_path / "binary.toml")


def test_settings_are_frozen_and_round_trip() -> None:
    recipe = parse_recipe({"name": "x", "model": {"stem": [{"channels": 8}]}}, "x")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.epochs = 3


def test_blocks_are_those_of_the_format() -> None:
    for weight_format in WEIGHT_FORMATS.values():
        assert (SIX_BIT_BLOCK if weight_format.bits == 6 else BLOCK) == (TILE_ROWS, weight_format.block_cols)
    assert parse_recipe({"name": "x", "prune": {"block": [16, 8]}}, "x").prune.block == (16, 8)
    wide: dict[str, Any] = {"prune": {"block": [32, 16]}, "quantize": {"weight_format": "int6"}}
    assert parse_recipe({"name": "x", **wide}, "x").prune.block == (32, 16)


def test_layers_replace_the_uniform_sizes() -> None:
    assert [layer.head_dim for layer in ModelSettings(embed_dim=96, num_heads=3, depth=2).resolved_layers()] == [32, 32]


def test_an_override_of_a_stage_that_is_not_run_is_refused() -> None:
    tree: dict[str, Any] = {"name": "x", "stages": ["train", "quantize", "export"]}
    message = r"^--set prune\.sparsity=0\.9: the stage 'prune' is not run; add it by --set stages=, now \['train', 'q"
    with pytest.raises(RecipeError, match=message):
        parse_settings(tree, "x.toml", ["prune.sparsity=0.9"], Recipe)
    more = ["prune.sparsity=0.9", "stages=['train', 'prune', 'quantize', 'export']", "data.limit=50", "seed=3"]
    assert parse_settings(tree, "x.toml", more, Recipe).prune.sparsity == 0.9
    compress: dict[str, Any] = {"command": "compress", "name": "x"}
    with pytest.raises(
        RecipeError, match=r"the stage 'factorize' is not run; add it by --set stages=, now \['quantize', 'd"
    ):
        parse_settings(compress, "x.toml", ["factorize.embedding_dim=4"], TextCompressRecipe)
