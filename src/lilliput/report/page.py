"""`report.html`: one page about one run, with nothing fetched from anywhere."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lilliput.files import write_atomic
from lilliput.report import text
from lilliput.report.images import encode_image
from lilliput.report.inspect import CATEGORIES, inspect_file

if TYPE_CHECKING:
    from lilliput.report.plots import AccuracyPoint, Curve, Span
    from lilliput.report.records import EvaluateStage, Records

CONFUSION_CELLS = 20  # classes up to which the matrix is a table with numbers; above, a picture
LONGEST_COLUMN_NAME = 3  # letters above which columns are numbered
CONFUSED_PAIRS = 5


def render(records: dict[str, Any], run_dir: Path) -> Path:
    """Write `report.html` into `run_dir` from the run's records and its `model.lil`.

    The same run folder gives the same bytes. Returns the page's path.

    Raises:
        UserError: records or file are missing or malformed, or the run was never evaluated.
    """
    from lilliput.report.records import parse_records

    run_dir = Path(run_dir)
    page = build_page(parse_records(records), inspect_file(run_dir / "model.lil"))
    path = run_dir / "report.html"
    write_atomic(path, page.encode("utf-8"))
    return path


def build_page(records: "Records", contents: dict[str, Any]) -> str:
    """The page's HTML, from a run's records and its inspected file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from lilliput.report import plots

    evaluation = records.evaluation
    points = _points(records, contents["file_bytes"])
    environment = Environment(
        loader=PackageLoader("lilliput.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for write in (text.count, text.percent, text.short_bytes, text.duration):
        environment.filters[write.__name__] = _unbroken(write)
    with plots.style():
        figures = {
            "accuracy": plots.accuracy_by_stage(points),
            "loss": plots.loss_curves(_curves(records)),
            "pareto": plots.accuracy_against_size(points),
            "arena": plots.arena_plan(_spans(contents), len(contents["ops"]), contents["arena_bytes"]),
        }
    return environment.get_template("page.html").render(
        title=records.title or records.name,
        records=records,
        evaluation=evaluation,
        contents=contents,
        figures=figures,
        settings=_settings(records.recipe),
        bars=_bars(contents),
        ledger=_ledger(records),
        confusion=_confusion(evaluation, records.data.classes),
        confused=_confused(records),
        reference=records.training[0] if records.training else None,
    )


def _unbroken(write: Callable[..., str]) -> Callable[..., str]:
    """A number and its unit stay on one line."""
    return lambda *values: write(*values).replace(" ", "\N{NO-BREAK SPACE}")


def _points(records: "Records", file_bytes: int) -> "list[AccuracyPoint]":
    """A stage that only simulates would still ship dense fp32: zeros and rounded values do not shrink such a file, but
    tensors that are smaller do."""
    from lilliput.report.plots import AccuracyPoint

    simulated = [
        AccuracyPoint(f"{stage.stage}, simulated", stage.test_accuracy, 4 * stage.parameters, measured=False)
        for stage in records.training
    ]
    return [*simulated, AccuracyPoint("model.lil, measured", records.evaluation.accuracy, file_bytes, measured=True)]


def _curves(records: "Records") -> "list[Curve]":
    from lilliput.report.plots import Curve

    curves, first = [], 0
    for stage in records.training:
        epochs = max((line.epoch for line in stage.history), default=0)
        train = [(first + line.epoch, line.train_loss) for line in stage.history]
        seen = [
            (first + line.epoch, line.validation_loss) for line in stage.history if line.validation_loss is not None
        ]
        if epochs:
            curves.append(Curve(stage.stage, first, epochs, train, seen))
        first += epochs
    return curves


def _spans(contents: dict[str, Any]) -> "list[Span]":
    from lilliput.report.plots import Span

    return [
        Span(buffer["name"], buffer["first_op"], buffer["last_op"], buffer["offset"], buffer["bytes"])
        for buffer in contents["buffers"]
        if buffer["place"] == "arena"
    ]


def _bars(contents: dict[str, Any]) -> list[dict[str, Any]]:
    """Categories of the file's bytes, in the order of the file's table of categories."""
    return [
        {
            "name": name,
            "label": label,
            "bytes": contents["bytes"][name],
            "share": contents["bytes"][name] / contents["file_bytes"],
        }
        for name, label in CATEGORIES.items()
    ]


def _ledger(records: "Records") -> list[dict[str, Any]]:
    """One row a claim, with every stage after which it was looked at."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for stage in records.stages:
        for claim in stage.ledger:
            row = rows.setdefault((claim.claim, claim.stage), {"checks": []})
            row["claim"] = claim
            row["checks"].append({"stage": stage.stage, "holds": claim.holds})
    for row in rows.values():
        row["holds"] = all(check["holds"] for check in row["checks"])
    return list(rows.values())


def _confusion(evaluation: "EvaluateStage", classes: Sequence[str]) -> dict[str, Any]:
    """Rows are labels, columns predictions; `shares` are of the row. Long names get numbers, many classes a picture."""
    counts = np.array(evaluation.confusion, np.int64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = None
    if len(counts) > CONFUSION_CELLS:
        accent = np.broadcast_to(np.array([0x2A, 0x78, 0xA8], np.uint8), (*counts.shape, 3))
        picture = encode_image(np.dstack([accent, np.rint(np.sqrt(shares) * 255).astype(np.uint8)]))
    numbered = max(map(len, classes)) > LONGEST_COLUMN_NAME
    return {"numbered": numbered, "counts": counts.tolist(), "shares": shares.tolist(), "picture": picture}


def _confused(records: "Records") -> list[dict[str, Any]]:
    """The pairs (label, prediction) that were mistaken most often."""
    counts = records.evaluation.confusion
    pairs = [
        (count, label, guess)
        for label, row in enumerate(counts)
        for guess, count in enumerate(row)
        if count and label != guess
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [
        {"count": count, "label": label, "guess": guess, "of": sum(counts[label])}
        for count, label, guess in pairs[:CONFUSED_PAIRS]
    ]


def _settings(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipe as groups of (field, value), the stages that were not asked for left out."""
    stages = recipe.get("stages", [])
    general = {name: value for name, value in recipe.items() if not isinstance(value, dict)}
    groups = {"recipe": general} | {
        name: value
        for name, value in recipe.items()
        if isinstance(value, dict) and (name in stages or name in ("data", "augment", "model"))
    }
    return [{"name": name, "fields": list(_flatten(fields))} for name, fields in groups.items()]


def _flatten(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}", ", ".join(map(_plain, value)) or "none"
        else:
            yield f"{prefix}{name}", _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={_plain(inner)}" for name, inner in value.items())
    return "none" if value is None else str(value)
