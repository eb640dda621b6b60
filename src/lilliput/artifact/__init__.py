"""`model.lil`: the writer and the strict reader of the format that docs/format.md, section 2, defines byte by byte.

What the program itself must hold is checked by `Program.validate`, on the way out and on the way in.
"""

from pathlib import Path

from lilliput.artifact.reader import from_bytes
from lilliput.artifact.writer import to_bytes
from lilliput.errors import ArtifactError
from lilliput.files import write_atomic
from lilliput.program.program import Program

__all__ = ["from_bytes", "read", "to_bytes", "write"]


def write(program: Program, path: str | Path) -> int:
    """Check `program`, then write it to `path` whole or not at all; gives the file's bytes.

    Raises:
        ArtifactError: the program breaks a MUST of docs/format.md.
        FailureError: the disk is full or the folder cannot be written; what was at `path` is unchanged.
    """
    data = to_bytes(program)
    write_atomic(path, data)
    return len(data)


def read(path: str | Path) -> Program:
    """Read and verify the file at `path`.

    Raises:
        ArtifactError: it cannot be read, or is truncated, altered, foreign, of another version or invalid.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); give the path of a .lil file") from None
    return from_bytes(data, str(path))
