"""`open`: a file to the session that serves it."""

import os

from lilliput.errors import ArtifactError, InputError
from lilliput.runtime._lil import Model
from lilliput.runtime.images import ImageSession
from lilliput.runtime.mapped import load_file
from lilliput.runtime.session import Session
from lilliput.runtime.texts import TextSession


def open(path: str | os.PathLike[str], *, isa: str | None = None, num_threads: int = 1) -> ImageSession | TextSession:
    """Open a `model.lil`: an `ImageSession`, or a `TextSession` where it was made for text.

    Args:
        path: of a `model.lil`. All of it is verified. Or of a packed one (`lil pack`), which is unpacked into memory
            first: the same model, whose weights no other process shares, and its `file_bytes` are the unpacked ones.
        isa: take the kernels of this instruction set. None: of the one that the environment variable LILLIPUT_ISA
            names, or of the best that this machine has. The outputs are the same bits with each.
        num_threads: threads for a call of `run`. They share the examples of a batch, or the work of each where there
            are fewer. The outputs do not depend on it.

    Raises:
        ArtifactError: the file cannot be read, or is truncated, altered, foreign, of another version or invalid.
        FailureError: there is no memory for the arena, or no more threads can be started.
        InputError: an instruction set that is not there, or `num_threads` below 1.
    """
    file = load_file(os.fspath(path))
    file.keep_records()
    try:
        model = Model(file.mapping)  # holds on to the mapping
    except ArtifactError as error:
        raise ArtifactError(f"{file.name}: {error}") from None
    return (TextSession if model.max_tokens else ImageSession)(file, model, isa, num_threads)


def open_image_model(path: str | os.PathLike[str], *, isa: str | None = None, num_threads: int = 1) -> ImageSession:
    """`open`, for what takes a model of images only.

    Raises:
        InputError: it was made for text; or as `open`.
        ArtifactError, FailureError: as `open`.
    """
    session = open(path, isa=isa, num_threads=num_threads)
    if isinstance(session, ImageSession):
        return session
    raise _another(session, "images", "text")


def open_text_model(path: str | os.PathLike[str], *, isa: str | None = None, num_threads: int = 1) -> TextSession:
    """`open`, for what takes a model of text only.

    Raises:
        InputError: it was made for images; or as `open`.
        ArtifactError, FailureError: as `open`.
    """
    session = open(path, isa=isa, num_threads=num_threads)
    if isinstance(session, TextSession):
        return session
    raise _another(session, "text", "images")


def _another(session: Session, wanted: str, found: str) -> InputError:
    session.close()
    task = session.metadata["task"]
    return InputError(f"{session.name}: it takes {found} (its task is {task}); this needs a model that takes {wanted}")
