"""Writing files so that a kill or a full disk never leaves half of one."""

import contextlib
import os
import tempfile
from pathlib import Path

from lilliput.errors import FailureError, UserError


def write_atomic(path: str | Path, data: bytes | bytearray | memoryview) -> None:
    """Write `data` beside `path`, flush it to the disk, then rename it over `path`.

    Raises:
        UserError: `path` is there and is no file (a folder, a device).
        FailureError: the disk is full or the folder cannot be written; `path` is as it was before.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it is there and is not a file; give the path of a file")
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        raise FailureError(
            f"cannot write {path}: {error.strerror or error}; what was there before is unchanged"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
