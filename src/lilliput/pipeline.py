"""Runs a recipe stage by stage: do, evaluate, assert the ledger, record, save. The same command resumes or skips.

A stage's key is a hash of its settings, the seed, the data and the key of the stage before. A stage whose record has
the same key is finished and is not done again; a training stage that was interrupted goes on from its checkpoint.
"""

import contextlib
import fcntl
import hashlib
import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

import lilliput
from lilliput import artifact, data
from lilliput.compress import PASSES, Claim
from lilliput.compress.ledger import assert_ledger, count_zeros
from lilliput.compress.prune import apply_masks
from lilliput.compress.quantize import Quantization
from lilliput.config import LoopSettings, Recipe
from lilliput.data import ImageDataset, channel_statistics
from lilliput.errors import UserError
from lilliput.files import write_atomic
from lilliput.lower import lower
from lilliput.measure import commit, evaluate, machine_info
from lilliput.models.checkpoint import load_model, save_model
from lilliput.models.vit import ViT
from lilliput.program.builder import with_golden
from lilliput.report import encode_image, render
from lilliput.train.display import TrainingDisplay
from lilliput.train.images import ImageClassification, predict
from lilliput.train.loop import Task, derive_seed, fit

# Part of every key, with the version of Lilliput: raise it when a stage computes something else from the same settings.
PIPELINE_VERSION = 5

# What a finished stage leaves in the run's folder (training stages: `model.json` and `model.safetensors` in their own).
PRODUCTS: dict[str, tuple[str, ...]] = {
    "export": ("model.lil",),
    "evaluate": (),
    "report": ("records.json", "report.html"),
}
# Settings that change no result, so a stage is not done again for them (what lies at `path` is in the fingerprint).
NO_RESULT = {"checkpoint_seconds", "path"}


@dataclass
class Run:
    """A recipe being run: what is fixed, and what the finished stages left."""

    recipe: Recipe
    folder: Path
    data: ImageDataset
    console: Console
    quiet: bool
    origin: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    model_folder: Path | None = None

    def model(self) -> ViT:
        if self.model_folder is not None:
            return load_model(self.model_folder)
        torch.manual_seed(derive_seed(self.recipe.seed, 2))
        model = ViT(self.recipe.model, self.data.image_shape, len(self.data.classes))
        model.set_normalization(*channel_statistics(self.data.train))
        return model

    def stage_folder(self, index: int) -> Path:
        return self.folder / f"{index + 1:02d}-{self.recipe.stages[index]}"


def run(recipe: Recipe, out: Path, console: Console | None = None, quiet: bool = False) -> Path:
    """Run every stage of `recipe` that is not finished yet; everything goes to `out / recipe.name`.

    Returns:
        The run's folder: `model.lil`, `report.html`, `records.json` and one folder a stage.

    Raises:
        UserError: the settings do not fit the data. FailureError: a guarantee broke, training diverged, the disk is
        full. KeyboardInterrupt: Ctrl-C; finished stages and the checkpoint are on the disk.
    """
    console = console or Console(stderr=True)
    if PartialState().num_processes > 1:
        raise UserError("lil run: several processes are not supported yet; start it without a launcher")
    dataset = data.load(recipe.data)
    state = Run(
        recipe, out / recipe.name, dataset, console, quiet, origin={"commit": commit(), "machine": machine_info()}
    )
    with _alone_in(state.folder):
        _refuse_early(state)
        if not quiet:
            _announce(state)
        _run_stages(state)
    return state.folder


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Make the run's folder, see that it can be written, and keep other runs out of it until the end (or the kill)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"--out: cannot write in {folder} ({error.strerror}); give a folder that can be written"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another lil run works in {folder}; wait for it, or give another --out") from None
        yield


def _run_stages(state: Run) -> None:
    recipe = state.recipe
    key = _hash(
        PIPELINE_VERSION, lilliput.__version__, recipe.seed, recipe.data, recipe.model, _fingerprint(state.data)
    )
    for index, stage in enumerate(recipe.stages):
        settings = getattr(recipe, stage)
        extra = [recipe.augment] if isinstance(settings, LoopSettings) else []
        key = _hash(key, index, stage, settings, *extra)
        record = _finished(state, index, key)
        if record is None:
            if (state.stage_folder(index) / "record.json").exists() and not state.quiet:
                reason = "its settings, the data or an earlier stage changed, or what it made is gone"
                state.console.print(f"[dim]{stage:<9} is done again: {reason}[/dim]", soft_wrap=True)
            record = _do_stage(state, index, key)
        elif not state.quiet:
            state.console.print(f"[dim]{stage:<9} finished before with the same settings[/dim]")
        if isinstance(settings, LoopSettings):
            state.model_folder = state.stage_folder(index)
        state.records.append(record)
        state.claims += [Claim(**claim) for claim in record["claims"]]


def _refuse_early(state: Run) -> None:
    """Build and lower an untrained model, so that what cannot be exported is refused before anything is trained."""
    model = state.model()
    if "export" in state.recipe.stages:
        Quantization(state.recipe.quantize).attach(model)
        lower(model, {"labels": list(state.data.classes)})


def _do_stage(state: Run, index: int, key: str) -> dict[str, Any]:
    """Do a stage. Its old record goes just before the new products come, its checkpoints after the new one."""
    stage, folder = state.recipe.stages[index], state.stage_folder(index)
    for part in [*folder.glob(".*.part"), *state.folder.glob(".*.part")]:
        part.unlink()  # what a kill in the middle of a write left
    started = time.monotonic()
    record: dict[str, Any] = {"stage": stage, "seconds": 0.0, "claims": [], "made_with": state.origin}
    if isinstance(getattr(state.recipe, stage), LoopSettings):
        record |= _train_stage(state, index, folder / f"checkpoint-{key[:16]}.safetensors")
        record["seconds"] = record["history"][-1]["seconds"]
    else:
        (folder / "record.json").unlink(missing_ok=True)
        record |= {"export": _export, "evaluate": _evaluate, "report": _report}[stage](state)
        record["seconds"] = round(time.monotonic() - started, 2)
    write_atomic(folder / "record.json", json.dumps({"key": key, "record": record}).encode())
    for checkpoint in folder.glob("checkpoint-*.safetensors"):
        checkpoint.unlink()
    if not state.quiet:
        state.console.print(_summary_line(record), soft_wrap=True)
    return record


def _train_stage(state: Run, index: int, checkpoint: Path) -> dict[str, Any]:
    recipe, stage = state.recipe, state.recipe.stages[index]
    settings = getattr(recipe, stage)
    model = state.model()
    work = PASSES[stage](settings) if stage in PASSES else None
    applied_to = []
    if work is not None:
        applied_to = work.applies_to(model)
        work.attach(model)

    def before_step(step: int, total: int) -> None:
        if work is not None:
            work.before_step(model, step, total)

    objective = ImageClassification(state.data, recipe.augment, derive_seed(recipe.seed, 3, index))
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
        "arena_bytes": program.arena_bytes,
        "parameters": model.num_parameters(),
        "fp32_bytes": 4 * model.num_parameters(),
        "ledger": ledger,
    }


def _evaluate(state: Run) -> dict[str, Any]:
    test = state.data.test
    with lilliput.open(state.folder / "model.lil") as session:
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
    fp32_parameters = next(record["parameters"] for record in state.records if record["stage"] == "train")
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


def _finished(state: Run, index: int, key: str) -> dict[str, Any] | None:
    """The record of a stage that was done with the same key and whose products are still there."""
    folder, stage = state.stage_folder(index), state.recipe.stages[index]
    try:
        saved = json.loads((folder / "record.json").read_text())
        record: dict[str, Any] = saved["record"]
        if saved["key"] != key:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if stage in PRODUCTS:
        products = [state.folder / name for name in PRODUCTS[stage]]
    else:
        products = [folder / "model.json", folder / "model.safetensors"]
    if not all(product.is_file() for product in products):
        return None
    if stage == "export" and record["file_crc32"] != zlib.crc32(products[0].read_bytes()):
        return None
    return record


def _hash(*parts: object) -> str:
    plain = [part.model_dump_json(exclude=NO_RESULT) if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


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


def _summary_line(record: dict[str, Any]) -> str:
    stage, seconds = record["stage"], record["seconds"]
    if "test_accuracy" in record:
        text = (
            f"validation {record['validation_accuracy']:.2%}, test {record['test_accuracy']:.2%} (simulated), "
            f"zeros {record['sparsity']:.1%}"
        )
    elif stage == "export":
        ratio = record["fp32_bytes"] / record["file_bytes"]
        text = f"{record['file_bytes']:,} bytes, {ratio:.2f} times under fp32; arena {record['arena_bytes']:,} bytes"
    elif stage == "evaluate":
        text = (
            f"test {record['accuracy']:.2%} measured on the file ({record['examples']:,} examples), "
            f"{record['differing_predictions']} predictions differ from the simulation, "
            f"largest logit difference {record['max_logit_difference']:.2g}"
        )
    else:
        text = record["page"]
    return f"[green]done[/green] {stage:<9} {seconds:7.1f} s  {text}"
