"""The command `eval`: the accuracy of a file, and its bits beside the reference's."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lilliput.cli.app import Json, ModelFile, app, print_json, progress_bar
from lilliput.cli.data import data_settings
from lilliput.cli.lines import read_lines
from lilliput.errors import DataError, UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lilliput.data import ImageDataset
    from lilliput.program.program import Examples, Program
    from lilliput.runtime.images import ImageSession
    from lilliput.runtime.session import Session
    from lilliput.runtime.texts import TextSession

VERIFIED_TEXTS = 100  # at most: of an encoder of 22 M parameters the reference runs six texts of 128 tokens a second
TEXT, LABEL = "text", "label"  # the columns, where none are named
NAMED = 4  # how many labels an error names


@dataclass(frozen=True, eq=False)
class EvalData:
    """What to measure on.

    about: of it, for the report. what: the same for people. noun: "images" or "texts". inputs: as the session's `run`
    takes them. labels: int64 [n], or None where they are not known.
    """

    about: dict[str, str]
    what: str
    noun: str
    inputs: "Examples"
    labels: "NDArray[np.int64] | None"


@app.command("eval")
def evaluate(
    model: ModelFile,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="NAME", help="Images: a data set; by default the one it was trained on."),
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(
            "--path", help="Images: where the data lies. Texts: a .csv or .jsonl; to verify, also one text a line."
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option("--column", metavar="NAME", help=f"Texts: their column; by default '{TEXT}'.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option("--label-column", metavar="NAME", help=f"Labels' column; by default '{LABEL}'.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compare the outputs with the numpy reference, bit for bit.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a file's accuracy through the runtime: on the test part of a data set of images, or on texts with labels.

    --verify compares every image and random ones; of texts 100 at most, and random sequences of token ids, the
    shortest and the longest too. For a model of text it needs no labels (plain text will do), and no --path either.
    """
    import lilliput
    from lilliput import artifact
    from lilliput.runtime.images import ImageSession

    with lilliput.open(model) as session:
        if isinstance(session, ImageSession):
            refuse_options(model, "images", {"--column": column, "--label-column": label_column})
            found = _image_data(test_data(session, data, path))
        else:
            refuse_options(model, "text", {"--data": data})
            found = _text_data(session, path, column, label_column, verify)
        report: dict[str, Any] = {"file": str(model), "file_bytes": session.file_bytes} | found.about
        lines: list[str] = []
        if found.labels is not None:
            lines.append(_measure(session, found, report, shown=not as_json))
        if verify:
            lines.append(_verify(session, artifact.read(model), found, report, shown=not as_json))
    if as_json:
        print_json(report)
        return
    for line in lines:
        typer.echo(line)


def refuse_options(model: Path, kind: str, options: dict[str, object]) -> None:
    """Options that are of no use for such a model must not be given.

    Raises:
        UserError: one of them is; names it.
    """
    for name, value in options.items():
        if value is not None:
            raise UserError(f"{name}: {model} is a model of {kind}, which has no use for it")


def _measure(session: "Session", found: EvalData, report: dict[str, Any], shown: bool) -> str:
    """Put the accuracy into the report; gives the line for people."""
    from lilliput import measure

    assert found.labels is not None
    with progress_bar("evaluate", shown) as progress:
        result = measure.evaluate(session, found.inputs, found.labels, progress)
    report |= {
        "examples": result.examples,
        "accuracy": result.accuracy,
        "macro_f1": result.macro_f1,
        "labels": list(session.labels),
        "confusion": result.confusion,
    }
    right = round(result.accuracy * result.examples)
    counts = f"({right:,} of {result.examples:,}), macro-F1 {result.macro_f1:.4f}"
    return f"{session.name}: {result.accuracy:.2%} of the {found.what} {counts}"


def _verify(session: "Session", program: "Program", found: EvalData, report: dict[str, Any], shown: bool) -> str:
    """Put the number of compared examples into the report; gives the line for people.

    Raises:
        FailureError: an output has other bits than the reference's, or than the golden example's.
    """
    from lilliput import measure

    inputs = found.inputs
    if found.noun == "texts" and len(inputs) > VERIFIED_TEXTS:  # evenly from the first to the last
        inputs = [inputs[number * len(inputs) // VERIFIED_TEXTS] for number in range(VERIFIED_TEXTS)]
    with progress_bar("verify", shown) as progress:
        compared = measure.verify(session, program, inputs, progress)
    golden = len(program.golden_inputs)
    report |= {"identical_to_reference": compared, "golden_examples": golden}
    of = f" (of {len(found.inputs):,})" if len(inputs) < len(found.inputs) else ""
    given = f"{len(inputs):,} {found.noun}{of} and " if len(inputs) else ""
    random = f"{compared - len(inputs):,} random {'images' if found.noun == 'images' else 'sequences'}"
    return f"runtime and numpy reference: the same bits on {given}{random}; golden examples: {golden}, as in the file"


def _image_data(dataset: "ImageDataset") -> EvalData:
    about = {"data": dataset.name, "part": "test"}
    return EvalData(about, f"{dataset.name} test images", "images", dataset.test.images, dataset.test.labels)


def _text_data(
    session: "TextSession", path: str | None, column: str | None, label_column: str | None, verify: bool
) -> EvalData:
    """The texts of a file, or none, and their labels where the model gives classes and the file has columns.

    Raises:
        UserError: as `_check_options`. DataError: the file cannot be used.
    """
    from lilliput.data.text_files import is_table, read_columns

    has_columns = path is not None and is_table(Path(path))
    _check_options(session, has_columns, column, label_column, verify)
    if path is None:
        return EvalData({}, "", "texts", [], None)
    about, what, labels = {"data": path}, f"texts of {path}", None
    if not has_columns:
        texts = read_lines(Path(path))
    elif session.labels:
        texts, names = read_columns(Path(path), (column or TEXT, label_column or LABEL))
        labels = _label_numbers(session, path, names)
    else:
        (texts,) = read_columns(Path(path), (column or TEXT,))
    return EvalData(about, what, "texts", _token_ids(session, path, texts), labels)


def _check_options(
    session: "TextSession", has_columns: bool, column: str | None, label_column: str | None, verify: bool
) -> None:
    """Raise a UserError where there is nothing to measure, or an option has no use."""
    model = session.name
    if not session.labels and label_column is not None:
        raise UserError(f"--label-column: {model} gives vectors, not classes; leave it out")
    if not has_columns and (column is not None or label_column is not None):
        raise UserError("--column and --label-column are of a .csv or .jsonl; give one by --path, or leave them out")
    if verify or (session.labels and has_columns):
        return
    if session.labels:
        raise UserError(
            f"{model}: no labels to measure accuracy by; give --path FILE.jsonl (or .csv) with texts and labels, or "
            "--verify, which needs none"
        )
    raise UserError(f"{model}: gives vectors, which have no accuracy; --verify compares them with the numpy reference")


def _token_ids(session: "TextSession", path: str, texts: list[str]) -> "list[NDArray[np.uint32]]":
    sequences = session.tokenize(texts)
    for number, ids in enumerate(sequences):
        if len(ids) == 0:
            raise DataError(f"data {path}: text {number} (from 0), {texts[number][:40]!r}, has no token; leave it out")
    return sequences


def _label_numbers(session: "TextSession", path: str, labels: list[str]) -> "NDArray[np.int64]":
    import numpy as np

    known = {label: number for number, label in enumerate(session.labels)}
    if unknown := [label for label in dict.fromkeys(labels) if label not in known]:
        raise DataError(f"data {path}: labels that the model does not know: {_some(unknown)}; it knows {_some(known)}")
    return np.array([known[label] for label in labels], np.int64)


def _some(labels: Iterable[str]) -> str:
    """The first of them, for people."""
    quoted = [repr(label[:40]) for label in labels]
    return ", ".join(quoted[:NAMED]) + (f" and {len(quoted) - NAMED} more" if len(quoted) > NAMED else "")


def test_data(session: "ImageSession", name: str | None, path: str | None) -> "ImageDataset":
    """The data set to measure on: as the file's provenance says, or another by name; it must fit the model."""
    from lilliput import data

    trained_on = _trained_on(session)
    if name is None and "name" not in trained_on:
        raise UserError("the file does not say which data it was trained on; give --data NAME")
    height, width, channels = session.image
    tree = trained_on if name in (None, trained_on.get("name")) else {"name": name}
    if tree["name"] == "folder":
        tree |= {"image_size": [height, width], "mode": "L" if channels == 1 else "RGB"}
    if path is not None:
        tree |= {"path": path}
    dataset = data.load(data_settings(tree, tree["name"]))
    if dataset.image_shape != (height, width, channels):
        shapes = "x".join(map(str, dataset.image_shape)), f"{height}x{width}x{channels}"
        raise UserError(f"--data {dataset.name}: its images are {shapes[0]}, the model takes {shapes[1]}")
    if list(dataset.classes) != list(session.labels):
        classes = f"{len(dataset.classes)} classes ({', '.join(dataset.classes[:3])}, ...)"
        labels = f"{len(session.labels)} labels ({', '.join(session.labels[:3])}, ...)"
        raise UserError(f"--data {dataset.name}: its {classes} are not the model's {labels}")
    return dataset


def _trained_on(session: "ImageSession") -> dict[str, Any]:
    """The data settings in the file's provenance, which is free text to the format; empty where there are none."""
    provenance = session.metadata.get("provenance")
    settings = provenance.get("data") if isinstance(provenance, dict) else None
    return dict(settings) if isinstance(settings, dict) else {}
