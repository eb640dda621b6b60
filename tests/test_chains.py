"""Random legal chains of passes on small random models: each lowers and opens, every guarantee holds on the model
after every later stage and in the file, the model reloads after each stage, and the file computes what it simulates."""

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lilliput import artifact
from lilliput.compress import PASSES, Claim
from lilliput.compress.ledger import assert_ledger
from lilliput.compress.prune import apply_masks
from lilliput.config import AugmentSettings, Recipe, parse_recipe
from lilliput.data import ImageDataset, Part
from lilliput.errors import RecipeError, UserError
from lilliput.lower import lower
from lilliput.models.checkpoint import load_model, save_model
from lilliput.models.vit import ViT
from lilliput.program.builder import with_golden
from lilliput.runtime.opening import open_image_model
from lilliput.train.calibration import calibration
from lilliput.train.images import ImageClassification, predict
from lilliput.train.loop import Task, fit

SHAPE = (8, 8, 1)
CLASSES = 4
# Largest difference of a logit, as a share of the logits' spread. The two sides differ by float rounding alone, but
# that now and then tips a level of an activation over, and the fewer levels there are the more one of them is.
BOUND = {8: 0.15, 6: 0.3, 4: 1.0}
MEDIAN = 1e-5
FORMATS = ["int8", "int6", "int4", "pot4", "apot4", "apot6"]


def _part(count: int, seed: int) -> Part:
    generator = np.random.default_rng(seed)
    return Part(generator.integers(0, 256, (count, *SHAPE), np.uint8), generator.integers(0, CLASSES, count))


DATA = ImageDataset("random", tuple("abcd"), _part(48, 0), _part(16, 1), _part(64, 2))
TRAINING = {"epochs": 1, "batch_size": 24, "lr": 1e-3}


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    heads = st.integers(2, 3)
    layer = {
        "num_heads": draw(heads),
        "head_dim": draw(st.sampled_from([3, 4, 8])),
        "mlp_dim": draw(st.integers(8, 24)),
    }
    same = draw(st.booleans())  # blocks that differ cannot be shared
    layers = [layer if same else layer | {"num_heads": draw(heads)} for _ in range(draw(st.integers(1, 3)))]
    pool = draw(st.sampled_from(["cls", "mean"]))
    model = {"patch_size": 4, "embed_dim": draw(st.sampled_from([8, 12, 20])), "layers": layers, "pool": pool}
    if pool == "cls":
        model["distillation"] = draw(st.sampled_from([None, "token", "head"]))
    if draw(st.booleans()):
        model |= {"stem": [{"channels": 6, "stride": 1}], "positions": "sinusoidal"}
    return model


@st.composite
def chains(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A model, and the settings of passes in their legal order; `quantize` is always the last."""
    model = draw(models())
    chain: dict[str, dict[str, Any]] = {}
    alike = model["layers"].count(model["layers"][0]) == len(model["layers"]) > 1
    if alike and draw(st.booleans()):
        chain["share"] = {"num_blocks": 1}
    if draw(st.booleans()):
        chain["shrink"] = draw(
            st.sampled_from([{"heads": 0.4}, {"neurons": 0.3}, {"embed_dim": 7}, {"heads": 0.3, "neurons": 0.5}])
        ) | {"steps": draw(st.integers(1, 3)), "reestimate": draw(st.booleans())}
    if draw(st.booleans()):
        size = draw(st.sampled_from([{"rank": 2}, {"budget": 0.5}, {"energy": 0.7}]))
        chain["factorize"] = size | {"method": draw(st.sampled_from(["svd", "whitened", "asvd"]))}
    if draw(st.booleans()):
        chain["prune"] = draw(
            st.sampled_from(
                [
                    {"sparsity": 0.6},
                    {"sparsity": 0.5, "scope": "layer"},
                    {"sparsity": 0.5, "criterion": "movement"},
                    {"pattern": [2, 4]},
                    {"sparsity": 0.3, "block": [16, 16]},
                ]
            )
        ) | {"update_every": 1}
    epochs = draw(st.integers(0, 1))
    chain["quantize"] = {
        "epochs": epochs,
        "weight_format": draw(st.sampled_from(FORMATS)),
        "embedding_format": draw(st.sampled_from(FORMATS)),
        "activation_bits": draw(st.sampled_from([8, 6, 4])),
        "hidden": draw(st.sampled_from(["static", "dynamic"])),
        "scales": draw(st.sampled_from(["searched", "power_of_two"] + ["learned"] * epochs)),
    }
    return model, chain


def _recipe(model: dict[str, Any], chain: dict[str, dict[str, Any]]) -> Recipe:
    tree = {"name": "chain", "model": model, "stages": ["train", *chain]}
    return parse_recipe(tree | {stage: TRAINING | changes for stage, changes in chain.items()}, "chain")


def _random_model(recipe: Recipe) -> ViT:
    torch.manual_seed(0)
    model = ViT(recipe.model, SHAPE, CLASSES)
    model.set_normalization(np.full(1, 120.0, np.float32), np.full(1, 60.0, np.float32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # biases, norms and tokens too
    return model


def _do_stage(model: ViT, recipe: Recipe, stage: str, folder: Path) -> list[Claim]:
    """A stage as the pipeline does it, on a few random images."""
    stage_settings = getattr(recipe, stage)
    work = PASSES[stage](stage_settings)
    work.applies_to(model)
    work.attach(model, calibration(model, DATA.train))
    objective = ImageClassification(DATA, AugmentSettings(), 0)
    task = Task(
        objective,
        folder / "checkpoint.safetensors",
        lambda step, total: work.before_step(model, step, total),
        after_step=lambda: apply_masks(model),
    )
    fit(model, stage_settings, task)
    work.finish(model)
    return work.claims(model)


def _check(model: ViT, recipe: Recipe, folder: Path) -> None:
    claims: list[Claim] = []
    for stage in recipe.stages[1:]:
        place = folder / stage
        place.mkdir(parents=True)
        claims += _do_stage(model, recipe, stage, place)
        assert_ledger(claims, model, stage)
        save_model(model, place)
        reloaded = load_model(place)
        assert torch.equal(predict(reloaded, DATA.test), predict(model, DATA.test))
        model = reloaded
    program = with_golden(lower(model, {"labels": list("abcd"), "provenance": {}}), _rows(DATA.validation))
    path = folder / "model.lil"
    artifact.write(program, path)
    assert_ledger(claims, artifact.read(path), "export")
    with open_image_model(path) as session:
        session.verify_golden()
        executed = session.run(DATA.test.images)
    simulated = predict(model, DATA.test).numpy()
    difference, spread = np.abs(simulated - executed), simulated.std()
    assert np.median(difference) <= MEDIAN * spread
    assert difference.max() <= BOUND[recipe.quantize.activation_bits] * spread


def _rows(part: Part) -> np.ndarray:
    return part.images[:2].reshape(2, -1, SHAPE[2])


# What a chain may be refused for by a pass: the model that has come to it has no room for it.
TOO_SMALL = re.compile("would get smaller|at most|largest|one block|guards keep")
CHAINS = 40


def test_legal_chains_keep_every_promise(tmp_path: Path) -> None:
    finished = []

    @settings(max_examples=CHAINS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(drawn=chains())
    def one(drawn: tuple[dict[str, Any], dict[str, dict[str, Any]]]) -> None:
        recipe = _recipe(*drawn)
        try:
            _check(_random_model(recipe), recipe, Path(tempfile.mkdtemp(dir=tmp_path)))
        except RecipeError as error:
            if not TOO_SMALL.search(str(error)):
                raise
        else:
            finished.append(drawn)

    one()
    assert len(finished) >= CHAINS // 2


ALL: dict[str, dict[str, Any]] = {
    "share": {"num_blocks": 1},
    "shrink": {"heads": 0.4, "neurons": 0.3},
    "factorize": {"budget": 0.5},
    "prune": {"sparsity": 0.5},
    "quantize": {"weight_format": "apot4"},
}


def test_all_passes_one_after_the_other(tmp_path: Path) -> None:
    layers = [{"num_heads": 3, "head_dim": 8, "mlp_dim": 24}] * 3
    recipe = _recipe({"patch_size": 4, "embed_dim": 16, "layers": layers}, ALL)
    model = _random_model(recipe)
    before = model.num_parameters()
    _check(model, recipe, tmp_path)
    assert load_model(tmp_path / "quantize").num_parameters() < 0.4 * before


ILLEGAL = [
    ("quantize", "prune"),
    ("prune", "factorize"),
    ("prune", "shrink"),
    ("factorize", "shrink"),
    ("shrink", "share"),
    ("quantize", "finetune"),
    ("prune", "prune"),
]


@pytest.mark.parametrize(("first", "second"), ILLEGAL)
def test_an_illegal_order_is_refused_before_training(first: str, second: str) -> None:
    with pytest.raises(UserError, match=f"'{second}' cannot follow '{first}'"):
        parse_recipe({"name": "x", "stages": ["train", first, second], "shrink": {"heads": 0.5}}, "test")
