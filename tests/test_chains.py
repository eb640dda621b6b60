"""Random legal chains of passes on small random models: each lowers and opens, every guarantee holds on the model
after every later stage and in the file, the model reloads after each stage, and the file computes what it simulates.

Chains are legal by how they are drawn: one that is refused fails the test."""

import copy
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lilliput import artifact
from lilliput.compress import PASSES, Claim
from lilliput.compress.formats import named_formats
from lilliput.compress.ledger import assert_ledger
from lilliput.compress.prune import apply_masks, block_sums
from lilliput.compress.sensitivity import size_of
from lilliput.config import AugmentSettings, PruneSettings, QuantizeSettings, Recipe, parse_recipe
from lilliput.data import ImageDataset, Part
from lilliput.errors import UserError
from lilliput.lower import lower
from lilliput.models.checkpoint import load_model, save_model
from lilliput.models.vit import ViT
from lilliput.program.builder import with_golden
from lilliput.program.formats import WEIGHT_FORMATS
from lilliput.runtime.opening import open_image_model
from lilliput.train.calibration import calibration
from lilliput.train.images import ImageClassification, predict
from lilliput.train.loop import Task, fit
from lilliput.train.teacher import check_teacher

SHAPE = (8, 8, 1)
CLASSES = 4
# Largest difference of a logit, as a share of the logits' spread. The two sides differ by float rounding alone, but
# that now and then tips a level of an activation over, and the fewer levels there are the more one of them is.
BOUND = {8: 0.15, 6: 0.3, 4: 1.0}
MEDIAN = 1e-5
EXAMPLES = 2  # of each feature
FORMATS = ("int8", "int6", "int4", "pot4", "apot4", "apot6")


def _part(count: int, seed: int) -> Part:
    generator = np.random.default_rng(seed)
    return Part(generator.integers(0, 256, (count, *SHAPE), np.uint8), generator.integers(0, CLASSES, count))


DATA = ImageDataset("random", tuple("abcd"), _part(48, 0), _part(16, 1), _part(64, 2))
TRAINING = {"epochs": 1, "batch_size": 24, "lr": 1e-3}

Tree = dict[str, Any]


class Chain(NamedTuple):
    """A model, and the settings of each stage after `train`, in their order."""

    model: Tree
    stages: dict[str, Tree]


SHRINKING = ("heads", "neurons", "blocks", "embed_dim")
PRUNING = ("weights", "movement", "pattern", "zero blocks")
OTHERS = ("share", "factorize", "finetune", "post-training", "learned", "formats", "code_bytes", "distill", "ema")


class Chooser:
    """Draws with Hypothesis, whose simplest choice is the first; what is wanted is always in."""

    def __init__(self, draw: st.DrawFn, wanted: str) -> None:
        self.draw, self.wanted = draw, wanted

    def has(self, *features: str) -> bool:
        """One time in three, if none of these is wanted."""
        return self.wanted in features or self.one_of(False, False, True)

    def one_of(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def kind(self, *features: str) -> str:
        """One of these: the one that is wanted, if it is among them."""
        return self.wanted if self.wanted in features else str(self.one_of(*features))


def _model(choose: Chooser) -> Tree:
    layer = {"num_heads": choose.one_of(2, 3), "head_dim": choose.one_of(3, 4, 8), "mlp_dim": choose.one_of(8, 17, 24)}
    depth = choose.draw(st.integers(2 if choose.wanted in ("share", "blocks") else 1, 3))
    same = choose.wanted == "share" or choose.one_of(True, False)  # blocks that differ cannot be shared
    layers = [layer if same else layer | {"num_heads": choose.one_of(2, 3)} for _ in range(depth)]
    pool = choose.one_of("cls", "mean")
    model = {"patch_size": 4, "embed_dim": choose.one_of(8, 12, 20), "layers": layers, "pool": pool}
    if pool == "cls":
        model["distillation"] = choose.one_of(None, "token", "head")
    if choose.one_of(False, True):
        model |= {"stem": [{"channels": 6, "stride": 1}], "positions": "sinusoidal"}
    return model


def _shrink(choose: Chooser, may_lose_blocks: bool) -> Tree:
    """One or two of the ways; shares such that each takes something, and leaves every block a head and a neuron."""
    shares: Tree = {"heads": choose.one_of(0.4, 0.3), "neurons": choose.one_of(0.3, 0.5), "embed_dim": 7}
    if may_lose_blocks:
        shares["blocks"] = 1
    names = {choose.kind(*shares), choose.one_of(*shares)}
    shrink: Tree = {name: share for name, share in shares.items() if name in names}
    if "heads" in shrink or "neurons" in shrink:
        shrink |= {"steps": choose.one_of(1, 2, 3), "reestimate": choose.one_of(True, False)}
    return shrink


def _factorize(choose: Chooser) -> Tree:
    """Ranks that make `attn.qkv` smaller whatever is left of it: it has at least 9 outputs and 7 inputs, so 3 is one.
    (And the 3 largest of 7 squares are at least 3/7 of all.)"""
    size = choose.one_of({"rank": 2}, {"budget": 0.5}, {"energy": 0.4})
    layers = choose.one_of(["blocks"], ["blocks.0.attn", "patch_embed"])
    return {**size, "method": choose.one_of("svd", "whitened", "asvd"), "layers": layers}


def _prune(choose: Chooser, six_bits: bool) -> Tree:
    kind, scope = choose.kind(*PRUNING), choose.one_of("global", "layer")
    prune: Tree = {"update_every": 1, "scope": scope}
    if kind == "pattern":
        return prune | {"pattern": choose.one_of([2, 4], [1, 3], [4, 8])}
    if kind == "zero blocks":  # of a layer of one block half is none; what a global share is of, `_fitted` finds
        blocks = [[16, 16], [32, 16]] if six_bits else [[16, 8], [16, 16], [32, 8]]
        return prune | {"sparsity": 0.9 if scope == "global" else 0.5, "block": choose.one_of(*blocks)}
    return prune | {"sparsity": choose.one_of(0.5, 0.7), "criterion": "movement" if kind == "movement" else "magnitude"}


def _quantize(choose: Chooser) -> Tree:
    trained = choose.wanted in ("learned", "distill", "ema") or not choose.has("post-training")
    scales = ["searched", "power_of_two"] + ["learned"] * trained
    quantize: Tree = {
        "epochs": int(trained),
        "embedding_format": choose.one_of(*FORMATS),
        "activation_bits": choose.one_of(8, 6, 4),
        "hidden": choose.one_of("static", "dynamic"),
        "scales": "learned" if choose.wanted == "learned" else choose.one_of(*scales),
    }
    if choose.has("code_bytes"):
        quantize["code_bytes"] = choose.one_of(30, 1, 100)  # percent, see `_fitted`
    else:
        quantize["weight_format"] = choose.one_of(*FORMATS)
    if choose.has("formats"):
        names = st.sampled_from(["head", "blocks.0", "blocks.0.attn", "blocks.0.mlp.fc2", "patch_embed"])
        quantize["formats"] = choose.draw(st.dictionaries(names, st.sampled_from(FORMATS), min_size=1, max_size=3))
    return quantize


def _distill(choose: Chooser, same_states: bool) -> Tree:
    """`same_states`: the teacher's hidden states are as wide as the model's, and some of them are of the same depth."""
    kind = choose.one_of("soft", "hard")
    distill: Tree = {"kind": kind, "weight": 0.5}
    if kind == "soft":
        distill |= {"weight": choose.one_of(0.5, 1.0), "temperature": choose.one_of(1.0, 3.0)}
    names = ["attention_weight", "value_weight"] + ["hidden_weight"] * same_states
    return distill | dict.fromkeys(choose.draw(st.lists(st.sampled_from(names), unique=True)), 1.0)


@st.composite
def chains(draw: st.DrawFn, wanted: str) -> Chain:
    """Legal ones with `wanted` among what is in them; the last stage is `quantize`."""
    choose = Chooser(draw, wanted)
    model = _model(choose)
    layers, chain = model["layers"], dict[str, Tree]()
    if wanted != "blocks" and layers.count(layers[0]) == len(layers) > 1 and choose.has("share"):
        chain["share"] = {"num_blocks": draw(st.integers(1, len(layers) - 1))}
    if choose.has(*SHRINKING):
        chain["shrink"] = _shrink(choose, "share" not in chain and len(layers) > 1)
    if choose.has("factorize"):
        chain["factorize"] = _factorize(choose)
    quantize = _quantize(choose)
    if choose.has(*PRUNING):
        formats = {quantize.get("weight_format"), *quantize.get("formats", {}).values()}
        chain["prune"] = _prune(choose, "code_bytes" in quantize or bool(formats & {"int6", "apot6"}))
    chain["quantize"] = quantize
    if choose.has("finetune"):
        stages = list(chain.items())
        stages.insert(draw(st.integers(0, len(stages) - 1)), ("finetune", {}))
        chain = dict(stages)
    trained = [stage for stage, changes in chain.items() if changes.get("epochs") != 0]
    if trained and choose.has("ema"):
        chain[choose.one_of(*trained)]["ema_decay"] = 0.5
    if trained and choose.has("distill"):
        shrink = chain.get("shrink", {})
        same_states = "embed_dim" not in shrink and len(layers) % (len(layers) - shrink.get("blocks", 0)) == 0
        chain[choose.one_of(*trained)]["distill"] = _distill(choose, same_states)
    return Chain(model, chain)


def _recipe(chain: Chain) -> Recipe:
    tree = {"name": "chain", "model": chain.model, "stages": ["train", *chain.stages]}
    stages = {stage: (TRAINING if each.get("epochs") != 0 else {}) | each for stage, each in chain.stages.items()}
    return parse_recipe(tree | stages, "chain")


def _fitted(settings: Any, model: ViT) -> Any:
    """Settings that are drawn as shares of what there is room for, for the model that has come to their stage."""
    weights = {name: linear.weight.detach() for name, linear in model.linears().items()}
    if isinstance(settings, PruneSettings) and settings.block and settings.scope == "global":
        counts = [block_sums(weight, settings.block).numel() for weight in weights.values()]
        may_go = sum(counts) - len(counts)  # of so few, each layer keeps one
        return settings.model_copy(update={"sparsity": max(1e-6, settings.sparsity * may_go / sum(counts))})
    if isinstance(settings, QuantizeSettings) and settings.code_bytes:
        named = named_formats(model, dict(settings.formats))
        sizes = [_sizes(weight, named.get(name)) for name, weight in weights.items()]
        least, most = sum(map(min, sizes)), sum(map(max, sizes))
        return settings.model_copy(update={"code_bytes": least + (most - least) * settings.code_bytes // 100})
    return settings


def _sizes(weight: torch.Tensor, name: str | None) -> list[int]:
    """Bytes of the codes in the formats that a layer may have."""
    levels = (weight != 0).numpy().astype(np.int8)
    return [size_of(levels, one) for one in ([name] if name else WEIGHT_FORMATS)]


def _random_model(recipe: Recipe) -> ViT:
    torch.manual_seed(0)
    model = ViT(recipe.model, SHAPE, CLASSES)
    model.set_normalization(np.full(1, 120.0, np.float32), np.full(1, 60.0, np.float32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # biases, norms and tokens too
    return model


def _do_stage(model: ViT, teacher: ViT, recipe: Recipe, place: Path) -> list[Claim]:
    """The stage that `place` is named after, as the pipeline does it, on a few random images."""
    stage = place.name
    stage_settings = _fitted(getattr(recipe, stage), model)
    work = PASSES[stage](stage_settings) if stage in PASSES else None
    if work is not None:
        work.applies_to(model)
        work.attach(model, calibration(model, DATA.train))
    if stage_settings.distill is not None:
        check_teacher(teacher, model, stage_settings.distill, DATA.classes, stage)

    def before_step(step: int, total: int) -> None:
        if work is not None:
            work.before_step(model, step, total)

    objective = ImageClassification(DATA, AugmentSettings(), 0, teacher if stage_settings.distill else None)
    checkpoint = place / "checkpoint.safetensors"
    fit(model, stage_settings, Task(objective, checkpoint, before_step, after_step=lambda: apply_masks(model)))
    if work is None:
        return []
    work.finish(model)
    return work.claims(model)


def _check(model: ViT, recipe: Recipe, folder: Path) -> None:
    claims: list[Claim] = []
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    for stage in recipe.stages[1:]:
        place = folder / stage
        place.mkdir(parents=True)
        claims += _do_stage(model, teacher, recipe, place)
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


@pytest.mark.parametrize("wanted", SHRINKING + PRUNING + OTHERS)
def test_legal_chains_keep_every_promise(wanted: str, tmp_path: Path) -> None:
    """With each feature in turn: the simplest chain that has it, and such ones with whatever else is drawn."""

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(chain=chains(wanted))
    def one(chain: Chain) -> None:
        recipe = _recipe(chain)
        _check(_random_model(recipe), recipe, Path(tempfile.mkdtemp(dir=tmp_path)))

    one()


ALL: dict[str, Tree] = {
    "share": {"num_blocks": 1},
    "shrink": {"heads": 0.4, "neurons": 0.3},
    "factorize": {"budget": 0.5},
    "prune": {"sparsity": 0.5},
    "quantize": {"weight_format": "apot4"},
}


def test_all_passes_one_after_the_other(tmp_path: Path) -> None:
    layers = [{"num_heads": 3, "head_dim": 8, "mlp_dim": 24}] * 3
    recipe = _recipe(Chain({"patch_size": 4, "embed_dim": 16, "layers": layers}, ALL))
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
