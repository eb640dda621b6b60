"""Commands on one file: its answers, and what is in it."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lilliput.cli.app import Json, ModelFile, TextFile, app, console, print_json, progress_bar
from lilliput.cli.lines import read_lines
from lilliput.errors import InputError, UserError
from lilliput.files import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lilliput.runtime.session import Session
    from lilliput.runtime.texts import TextSession

TEXTS_A_CALL = 256  # embedded between two steps of the progress bar


@app.command()
def predict(
    model: ModelFile,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...", help="Of a model of images: files, any size and mode. Of a model of text: the texts."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Texts to classify, one a line; - is stdin.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="How many labels to show for each input.")] = 3,
    as_json: Json = False,
) -> None:
    """Print label and probabilities of images or texts, as the model takes the one or the other. Pre-processing and
    tokenizer are in the file."""
    import numpy as np

    import lilliput

    if not inputs and file is None:
        raise UserError("predict: no INPUT; give images or texts, or --file FILE")
    if inputs and file is not None:
        raise UserError(f"predict: '{inputs[0]}' and --file {file}; give the one or the other")
    with lilliput.open(model) as session:
        kind, named, batch = _batch(session, inputs, file)
        _, probabilities = session.predict(batch)
        names = session.labels
    answers = []
    for said, row in zip(named, probabilities, strict=True):
        best = np.argsort(-row, kind="stable")[:top]
        likely = [{"label": names[index], "probability": float(row[index])} for index in best]
        answers.append({kind: said, **likely[0], "top": likely})
    if as_json:
        print_json(answers)
        return
    _print_answers(kind, answers)


@app.command()
def embed(
    model: ModelFile,
    file: TextFile,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.npy", help="Where the vectors go: numpy's format, float32 [n, dim].")
    ],
    threads: Annotated[int, typer.Option("--threads", min=1, metavar="N", help="Threads that share the texts.")] = 1,
    isa: Annotated[str | None, typer.Option("--isa", metavar="NAME", help="Force an instruction set.")] = None,
) -> None:
    """Write the vectors of texts, one a line. A text that is too long for the model is cut; an empty line is a text."""
    from lilliput.runtime.opening import open_text_model

    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; must be a file")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out.exists() and any(other.exists() and out.samefile(other) for other in (model, file)):
        raise UserError(f"--out {out}: would be written over what is read; give another file")
    with open_text_model(model, isa=isa, num_threads=threads) as session:
        session.embed([])  # a model that gives no vectors is refused before stdin is waited for
        texts = read_lines(file)
        data, vectors = _npy(len(texts), session.num_outputs)
        with progress_bar("embed", shown=True) as progress:
            _embed(session, texts, vectors, progress)
    write_atomic(out, data)
    typer.echo(f"{out}: {len(vectors):,} vectors of {session.num_outputs:,} dimensions")


@app.command()
def inspect(
    target: Annotated[Path, typer.Argument(metavar="MODEL_OR_RUN", help="A model.lil, or the folder of a run.")],
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens", min=1, metavar="N", help="Of a model of text: the length that multiply-adds are counted for."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Account for every byte of a file, count its zeros by decoding it, list its ops and its buffer plan; and of a run,
    what each stage guaranteed and where that was checked."""
    from lilliput.report import inspect_file
    from lilliput.report.ledger import read_ledger

    ledger = read_ledger(target) if target.is_dir() else []
    file = target / "model.lil" if target.is_dir() else target
    # A run that has no file yet still has guarantees.
    contents = {} if ledger and not file.exists() else inspect_file(file, tokens or 0)
    if as_json:
        print_json({**contents, "ledger": ledger} if ledger else contents)
        return
    from lilliput.report.terminal import print_inspection, print_ledger

    if contents:
        print_inspection(contents, console())
    if ledger:
        print_ledger(ledger, console())


def _batch(session: "Session", inputs: list[str] | None, file: Path | None) -> tuple[str, list[str], Any]:
    """What an input is called, the inputs for people, and what `session.predict` takes."""
    import numpy as np

    from lilliput.runtime.images import ImageSession

    if not isinstance(session, ImageSession):
        session.predict([])  # a model that gives no classes is refused before stdin is waited for
        texts = read_lines(file) if file is not None else _texts(session.name, inputs or [])
        return "text", texts, texts
    if file is not None:
        raise InputError(f"{session.name}: it takes images; --file is for texts. Give the images' files")

    from lilliput.runtime.preprocess import load_image

    paths = inputs or []
    return "image", paths, np.stack([load_image(path, *session.image) for path in paths])


def _texts(model: str, inputs: list[str]) -> list[str]:
    """A file's name is no text that anybody wants to classify."""
    for text in inputs:
        if os.path.isfile(text):
            raise InputError(f"{model}: it takes texts, and '{text}' is a file; for its lines: --file {text}")
    return inputs


def _npy(count: int, dim: int) -> tuple[bytearray, "NDArray[np.float32]"]:
    """The bytes of a .npy file of float32 [count, dim], and the view of them that is to be filled."""
    import numpy as np

    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
    np.lib.format.write_array_header_1_0(header, shape)
    data = bytearray(header.tell() + 4 * count * dim)
    data[: header.tell()] = header.getvalue()
    return data, np.frombuffer(data, "<f4", count * dim, header.tell()).reshape(count, dim)


def _embed(
    session: "TextSession", texts: list[str], vectors: "NDArray[np.float32]", progress: Callable[[int, int], None]
) -> None:
    for start in range(0, len(texts), TEXTS_A_CALL):
        part = texts[start : start + TEXTS_A_CALL]
        try:
            vectors[start : start + len(part)] = session.embed(part)
        except InputError as error:
            raise InputError(f"{error} (text 0 is line {start + 1})") from None
        progress(start + len(part), len(texts))


def _print_answers(kind: str, answers: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(kind)
    table.add_column("label")
    table.add_column("probability", justify="right")
    for answer in answers:
        for rank, likely in enumerate(answer["top"]):
            style = "bold" if rank == 0 else "dim"
            said = answer[kind] if rank == 0 else ""
            table.add_row(
                escape(said), escape(likely["label"]), f"{likely['probability']:.2%}", style=style, end_section=False
            )
    console().print(table)
