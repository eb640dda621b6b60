"""Runs a recipe on images stage by stage: do, evaluate, assert the ledger, record, save (`lilliput.stages`)."""

import copy
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from rich.markup import escape

import lilliput
from lilliput import artifact, data
from lilliput.compress import PASSES
from lilliput.compress.factorize import worthwhile_rank
from lilliput.compress.ledger import assert_ledger, count_zeros
from lilliput.compress.prune import apply_masks
from lilliput.config import LoopSettings, Recipe, TeacherSettings
from lilliput.data import ImageDataset, channel_statistics
from lilliput.errors import RecipeError, UserError
from lilliput.files import write_atomic
from lilliput.lower import lower
from lilliput.measure import evaluate
from lilliput.models.checkpoint import load_model, save_model
from lilliput.models.low_rank import low_rank_layers
from lilliput.models.vit import ViT
from lilliput.program.builder import with_golden
from lilliput.report import encode_image, render
from lilliput.runtime.opening import open_image_model
from lilliput.stages import StagedRun, alone_in, hash_of
from lilliput.train.calibration import calibration, random_calibration
from lilliput.train.display import TrainingDisplay
from lilliput.train.images import ImageClassification, predict
from lilliput.train.loop import Task, derive_seed, fit, refuse_precision
from lilliput.train.teacher import Teacher, check_teacher, read_teacher

# Part of every key, with the version of Lilliput: raise it when a stage computes something else from the same settings.
PIPELINE_VERSION = 9

WITHOUT_PASS = ("train", "finetune")
# What a finished stage leaves in the run's folder (training stages: a model in their own).
PRODUCTS: dict[str, tuple[str, ...]] = {
    "export": ("model.lil",),
    "evaluate": (),
    "report": ("records.json", "report.html"),
}


@dataclass(kw_only=True)
class Run(StagedRun):
    """A recipe being run."""

    recipe: Recipe
    data: ImageDataset
    teachers: dict[Path, Teacher] = field(default_factory=dict)  # by folder, each read once

    def model(self) -> ViT:
        if self.model_folder is not None:
            return load_model(self.model_folder)
        torch.manual_seed(derive_seed(self.recipe.seed, 2))
        model = ViT(self.recipe.model, self.data.image_shape, len(self.data.classes))
        _refuse_larger_factors(model)
        model.set_normalization(*channel_statistics(self.data.train))
        return model

    def first_key(self) -> str:
        recipe = self.recipe
        return hash_of(
            PIPELINE_VERSION, lilliput.__version__, recipe.seed, recipe.data, recipe.model, _fingerprint(self.data)
        )

    def settings(self, stage: str) -> tuple[object, ...]:
        settings = getattr(self.recipe, stage)
        if not isinstance(settings, LoopSettings):
            return (settings,)
        distill = settings.distill
        if distill is not None and distill.model != "train":  # what lies there, wherever that is
            held = distill.model_copy(update={"model": self.teacher(distill).checksum})
            settings = settings.model_copy(update={"distill": held})
        return (settings, self.recipe.augment)

    def teacher(self, settings: TeacherSettings) -> Teacher:
        """The model that the settings name; the run's own must have been trained."""
        own = settings.model == "train"
        if not own and Path(settings.model).resolve().is_relative_to(self.folder.resolve()):
            raise UserError(
                f"distill.model={settings.model}: lies in the run's own folder, which changes as it runs; 'train' is "
                "its fp32 model, or copy that folder elsewhere"
            )
        folder = self.stage_folder(self.stages.index("train")) if own else Path(settings.model)
        if folder not in self.teachers:
            self.teachers[folder] = read_teacher(folder)
        return self.teachers[folder]

    @property
    def products(self) -> dict[str, tuple[str, ...]]:
        return PRODUCTS | ({"export": ("model.lil", "model.lilz")} if self.recipe.export.packed else {})

    def work(self, index: int, checkpoint: Path) -> dict[str, Any]:
        stage = self.stages[index]
        if stage not in PRODUCTS:
            return _train_stage(self, index, checkpoint)
        return {"export": _export, "evaluate": _evaluate, "report": _report}[stage](self)

    def summary(self, record: dict[str, Any]) -> str:
        return _summary(record)


def run(recipe: Recipe, out: Path, console: Console | None = None, quiet: bool = False) -> Path:
    """Run every stage of `recipe` that is not finished yet; everything goes to `out / recipe.name`.

    Returns:
        The run's folder: `model.lil` (and `model.lilz`, where asked for), `report.html`, `records.json` and one folder
        a stage.

    Raises:
        UserError: the settings do not fit the data. FailureError: a guarantee broke, training diverged, the disk is
        full. KeyboardInterrupt: Ctrl-C; finished stages and the checkpoint are on the disk.
    """
    console = console or Console(stderr=True)
    if PartialState().num_processes > 1:
        raise UserError("lil run: several processes are not supported yet; start it without a launcher")
    dataset = data.load(recipe.data)
    state = Run(
        recipe=recipe, data=dataset, folder=out / recipe.name, stages=recipe.stages, console=console, quiet=quiet
    )
    with alone_in(state.folder, "lil run"):
        _refuse_early(state)
        if not quiet:
            _announce(state)
        state.run_stages()
    return state.folder


def _refuse_early(state: Run) -> None:
    """Build an untrained model, do to it what the passes will do, and lower it, so that what cannot be done or exported
    is refused before anything is trained."""
    model = state.model()
    untrained = copy.deepcopy(model)  # of the sizes that stage `train` will leave
    ranks_known = True
    for stage in state.recipe.stages:
        settings = getattr(state.recipe, stage)
        if isinstance(settings, LoopSettings) and settings.epochs:
            refuse_precision(settings)
        if stage == "factorize" and settings.energy is not None:
            ranks_known = False  # they depend on trained weights, and with them names and bytes of factors
        if stage == "quantize" and not ranks_known:
            settings = settings.model_copy(update={"code_bytes": None, "formats": {}})
        if stage not in PRODUCTS and stage not in WITHOUT_PASS:
            work = PASSES[stage](settings)
            work.applies_to(model)
            work.attach(model, random_calibration(model))
            work.finish(model)
        if isinstance(settings, LoopSettings) and settings.distill is not None:
            distill = settings.distill
            teacher = untrained if distill.model == "train" else state.teacher(distill).model
            check_teacher(teacher, model, distill, state.data.classes, stage)
    if "export" in state.recipe.stages:
        lower(model, {"labels": list(state.data.classes)})


def _refuse_larger_factors(model: ViT) -> None:
    """Raise if two factors that a recipe asks for take as many numbers as the layer in whose place they stand."""
    for name, layer in low_rank_layers(model).items():
        shape = torch.Size((layer.out_features, layer.in_features))
        most = worthwhile_rank(shape)
        if layer.rank > most:
            factors, whole = layer.rank * sum(shape), shape.numel()
            advice = f"at most {most} makes it smaller" if most else "no rank makes it smaller; leave it out"
            raise RecipeError(
                f"model.ranks: '{name}' = {layer.rank} makes {factors} weights of the layer's {whole}; {advice}"
            )


def _train_stage(state: Run, index: int, checkpoint: Path) -> dict[str, Any]:
    recipe, stage = state.recipe, state.recipe.stages[index]
    settings = getattr(recipe, stage)
    model = state.model()
    work = None if stage in WITHOUT_PASS else PASSES[stage](settings)
    applied_to = []
    if work is not None:
        applied_to = work.applies_to(model)
        work.attach(model, calibration(model, state.data.train))

    def before_step(step: int, total: int) -> None:
        if work is not None:
            work.before_step(model, step, total)

    teacher = None if settings.distill is None else state.teacher(settings.distill).model
    objective = ImageClassification(state.data, recipe.augment, derive_seed(recipe.seed, 3, index), teacher)
    task = Task(objective, checkpoint, before_step, after_step=lambda: apply_masks(model))
    display = None if state.quiet else TrainingDisplay(stage, state.console)
    try:
        history = fit(model, settings, task, display)
    finally:
        if display is not None:
            display.stop()
    if work is not None:
        work.finish(model)
    claims = work.claims(model) if work is not None else []
    ledger = assert_ledger(state.claims + claims, model, stage)
    accuracies = {f"{part}_accuracy": _accuracy(model, getattr(state.data, part)) for part in ("validation", "test")}
    zeros, weights = count_zeros(model)
    (checkpoint.parent / "record.json").unlink(missing_ok=True)
    model.labels = state.data.classes
    save_model(model, checkpoint.parent)
    return {
        "simulated": True,
        "applied_to": applied_to,
        "parameters": model.num_parameters(),
        **accuracies,
        "weights": weights,
        "nonzero_weights": weights - zeros,
        "sparsity": zeros / weights,
        "history": history,
        "ledger": ledger,
        "claims": [claim.to_json() for claim in claims],
    }


def _export(state: Run) -> dict[str, Any]:
    recipe = state.recipe
    model = state.model()
    metadata = {
        "labels": list(state.data.classes),
        "provenance": {
            "lilliput": lilliput.__version__,
            "recipe": recipe.name,
            "seed": recipe.seed,
            # In full, because a default may change and the test part must not; without places of this machine.
            "data": json.loads(recipe.data.model_dump_json(exclude={"path", "limit"})),
            "simulated_validation_accuracy": {
                record["stage"]: round(record["validation_accuracy"], 5)
                for record in state.records
                if "validation_accuracy" in record
            },
        },
    }
    height, width, channels = model.image_shape
    golden = state.data.validation.images[: recipe.export.golden].reshape(-1, height * width, channels)
    program = with_golden(lower(model, metadata), golden)
    path = state.folder / "model.lil"
    artifact.write(program, path)
    ledger = assert_ledger(state.claims, artifact.read(path), "export")
    return {
        "file": path.name,
        "file_bytes": path.stat().st_size,
        "file_crc32": zlib.crc32(path.read_bytes()),
        **artifact.write_packed(path, recipe.export.packed),
        "arena_bytes": program.arena_bytes,
        "parameters": model.num_parameters(),
        "fp32_bytes": 4 * _trained_parameters(state),
        "ledger": ledger,
    }


def _trained_parameters(state: Run) -> int:
    """Those of the fp32 model that everything is measured against."""
    return int(next(record["parameters"] for record in state.records if record["stage"] == "train"))


def _evaluate(state: Run) -> dict[str, Any]:
    test = state.data.test
    with open_image_model(state.folder / "model.lil") as session:
        session.verify_golden()
        result = evaluate(session, test.images, test.labels)
        engine = {"runtime": f"lilliput C {session.isa}", "threads": session.num_threads}
    simulated = predict(state.model(), test).numpy()
    differing = int((simulated.argmax(1) != result.predictions).sum())
    probabilities = torch.softmax(torch.from_numpy(result.logits), dim=1).numpy()
    samples = [
        {
            "index": index,
            "label": int(test.labels[index]),
            "prediction": int(result.predictions[index]),
            "probability": float(probabilities[index, result.predictions[index]]),
            "image": encode_image(test.images[index]),
        }
        for index in _sample_indices(result.predictions, test.labels, state.recipe.evaluate.samples)
    ]
    return {
        "simulated": False,
        "data": state.data.name,
        "part": "test",
        "examples": result.examples,
        "accuracy": result.accuracy,
        "confusion": result.confusion,
        "differing_predictions": differing,
        "max_logit_difference": float(np.abs(simulated - result.logits).max()),
        "engine": engine,
        "samples": samples,
        "ledger": assert_ledger(state.claims, artifact.read(state.folder / "model.lil"), "evaluate"),
    }


def _report(state: Run) -> dict[str, Any]:
    fp32_parameters = _trained_parameters(state)
    parts = {name: len(getattr(state.data, name).labels) for name in ("train", "validation", "test")}
    records = {
        "name": state.recipe.name,
        "title": state.recipe.report.title,
        "lilliput": lilliput.__version__,
        # Of the measurement, wherever the page is made.
        **next(record["made_with"] for record in state.records if record["stage"] == "evaluate"),
        "data": {"name": state.data.name, "classes": list(state.data.classes), "image": list(state.data.image_shape)}
        | parts,
        "model": {
            "parameters": fp32_parameters,
            "fp32_bytes": 4 * fp32_parameters,
            "settings": json.loads(state.recipe.model.model_dump_json()),
        },
        "recipe": json.loads(state.recipe.model_dump_json()),
        "stages": [{k: v for k, v in record.items() if k != "claims"} for record in state.records],
    }
    write_atomic(state.folder / "records.json", json.dumps(records, indent=1).encode())
    page = render(records, state.folder)
    return {"page": page.name}


def _accuracy(model: ViT, part: data.Part) -> float:
    return float((predict(model, part).argmax(1).numpy() == part.labels).mean())


def _sample_indices(predictions: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
    """The first wrong ones (at most a third of the samples), then the first right ones, in order."""
    wrong = np.flatnonzero(predictions != labels)[: count // 3]
    right = np.flatnonzero(predictions == labels)[: count - len(wrong)]
    return sorted(int(index) for index in np.concatenate([wrong, right]))


def _fingerprint(dataset: ImageDataset) -> str:
    """A checksum of classes, images and labels: a data set that changed on the disk is another data set."""
    crc = 0
    for part in (dataset.train, dataset.validation, dataset.test):
        crc = zlib.crc32(part.images.tobytes(), zlib.crc32(part.labels.tobytes(), crc))
    return f"{dataset.classes} {dataset.image_shape} {crc:08x}"


def _announce(state: Run) -> None:
    parts = ", ".join(f"{len(getattr(state.data, n).labels):,} {n}" for n in ("train", "validation", "test"))
    height, width, channels = state.data.image_shape
    parameters = state.model().num_parameters()
    state.console.print(
        f"[bold]{state.recipe.name}[/bold]: {state.data.name} {height}x{width}x{channels} ({parts}), "
        f"{parameters:,} parameters, {4 * parameters:,} bytes in fp32; results in {escape(str(state.folder))}",
        soft_wrap=True,
    )


def _summary(record: dict[str, Any]) -> str:
    stage = record["stage"]
    if "test_accuracy" in record:
        text = (
            f"validation {record['validation_accuracy']:.2%}, test {record['test_accuracy']:.2%} (simulated), "
            f"zeros {record['sparsity']:.1%}"
        )
    elif stage == "export":
        ratio = record["fp32_bytes"] / record["file_bytes"]
        text = f"{record['file_bytes']:,} bytes, {ratio:.2f} times under the fp32 model"
        text += f"; arena {record['arena_bytes']:,} bytes"
        if "packed_bytes" in record:
            text += f"; packed {record['packed_bytes']:,} bytes"
    elif stage == "evaluate":
        text = (
            f"test {record['accuracy']:.2%} measured on the file ({record['examples']:,} examples), "
            f"{record['differing_predictions']} predictions differ from the simulation, "
            f"largest logit difference {record['max_logit_difference']:.2g}"
        )
    else:
        text = record["page"]
    return text
