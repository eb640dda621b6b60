"""`model.lil`: the writer and the strict reader of the format that docs/format.md, section 2, defines byte by byte; and
the packed file of section 3, which is read wherever a `model.lil` is.

What the program itself must hold is checked by `Program.validate`, on the way out and on the way in.
"""

import zlib
from pathlib import Path

from lilliput.artifact.packed import SUFFIX, is_packed, pack, unpack
from lilliput.artifact.reader import from_bytes
from lilliput.artifact.writer import to_bytes
from lilliput.errors import ArtifactError
from lilliput.files import write_atomic
from lilliput.program.program import Program

__all__ = [
    "SUFFIX",
    "from_bytes",
    "is_packed",
    "pack",
    "read",
    "read_bytes",
    "to_bytes",
    "unpack",
    "write",
    "write_packed",
]


def write(program: Program, path: str | Path) -> int:
    """Check `program`, then write it to `path` whole or not at all; gives the file's bytes.

    Raises:
        ArtifactError: the program breaks a MUST of docs/format.md.
        FailureError: the disk is full or the folder cannot be written; what was at `path` is unchanged.
    """
    data = to_bytes(program)
    write_atomic(path, data)
    return len(data)


def write_packed(path: Path, wanted: bool = True) -> dict[str, str | int]:
    """Pack the file at `path` into one beside it; where that is not `wanted`, remove one that lies there.

    Returns:
        For a record: `packed_file`, its name, `packed_bytes` and `packed_crc32`; nothing where it is not wanted.

    Raises:
        ArtifactError: the file at `path` cannot be read or is not valid.
        FailureError: the disk is full or the folder cannot be written.
    """
    packed = path.with_suffix(SUFFIX)
    if not wanted:
        packed.unlink(missing_ok=True)
        return {}
    data = pack(read_bytes(path), str(path))
    write_atomic(packed, data)
    return {"packed_file": packed.name, "packed_bytes": len(data), "packed_crc32": zlib.crc32(data)}


def read(path: str | Path) -> Program:
    """Read and verify the file at `path`, packed or not.

    Raises:
        ArtifactError: it cannot be read, or is truncated, altered, foreign, of another version or invalid.
    """
    data, name = read_bytes(path), str(path)
    return from_bytes(unpack(data, name) if is_packed(data) else data, name)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of the file at `path`, whatever it is.

    Raises:
        ArtifactError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); give the path of a .lil file") from None
