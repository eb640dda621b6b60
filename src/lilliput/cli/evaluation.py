"""The command `eval`: the accuracy of a file."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lilliput.cli.app import DataPath, Json, ModelFile, app, print_json, progress_bar
from lilliput.cli.data import data_settings
from lilliput.errors import UserError

if TYPE_CHECKING:
    from lilliput.data import ImageDataset
    from lilliput.runtime.images import ImageSession


@app.command("eval")
def evaluate(
    model: ModelFile,
    data: Annotated[
        str | None, typer.Option("--data", metavar="NAME", help="A data set; by default the one it was trained on.")
    ] = None,
    path: DataPath = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compare every output with the numpy reference, bit for bit.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a file's accuracy on the test part of a data set, through the runtime."""
    from lilliput import artifact, measure
    from lilliput.runtime.opening import open_image_model

    with open_image_model(model) as session:
        dataset = test_data(session, data, path)
        with progress_bar("evaluate", shown=not as_json) as progress:
            result = measure.evaluate(session, dataset.test.images, dataset.test.labels, progress)
        report = {
            "file": str(model),
            "file_bytes": session.file_bytes,
            "data": dataset.name,
            "part": "test",
            "examples": result.examples,
            "accuracy": result.accuracy,
            "labels": list(dataset.classes),
            "confusion": result.confusion,
        }
        if verify:
            report["identical_to_reference"] = measure.verify(session, artifact.read(model), dataset.test.images)
    if as_json:
        print_json(report)
        return
    right = round(result.accuracy * result.examples)
    typer.echo(f"{model}: {result.accuracy:.2%} of the {dataset.name} test images ({right:,} of {result.examples:,})")
    if verify:
        compared = report["identical_to_reference"]
        typer.echo(f"runtime and numpy reference: the same bits on all {compared:,} test and random images")


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
