"""`cifar10`: 50,000 + 10,000 colour images of 32x32 pixels in ten classes (Krizhevsky 2009).

Both official layouts are read, as a `.tar.gz` archive or as its extracted folder. Nothing is ever extracted to the
disk, and the python layout's pickles go through an unpickler that can build arrays of bytes and nothing else.
"""

import hashlib
import os
import tarfile
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np

from lilliput.data.cifar10_pickle import parse_batch_pickle, parse_names_pickle
from lilliput.data.dataset import Labels, Part, Pixels, Source
from lilliput.errors import DataError
from lilliput.files import write_atomic

SIDE, CHANNELS, NUM_CLASSES = 32, 3, 10
PIXELS = SIDE * SIDE * CHANNELS
MAX_FILE_BYTES = 64 << 20  # an official batch has 31 MB
MAX_ARCHIVE_BYTES = 256 << 20  # the official archives have 170 MB
TIMEOUT_SECONDS = 30.0

# One batch as (values uint8 [n, 3072] channel by channel, labels int64 [n]).
Batch = tuple[Pixels, Labels]


def parse_batch_binary(data: bytes, where: str) -> Batch:
    """Records of one label byte and 3,072 pixel bytes."""
    record = 1 + PIXELS
    if not data or len(data) % record:
        raise DataError(f"{where}: {len(data)} bytes are not whole records of {record} bytes; get the file again")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
    return records[:, 1:], records[:, 0].astype(np.int64)


def parse_names_binary(data: bytes, where: str) -> list[str]:
    """One class name a line."""
    return data.decode("utf-8", errors="replace").split()


@dataclass(frozen=True)
class Layout:
    """One official archive: where to get it, what it holds, and how its files are read."""

    archive: str
    url: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    parse_batch: Callable[[bytes, str], Batch]
    parse_names: Callable[[bytes, str], list[str]]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.names)


BINARY = Layout(
    archive="cifar-10-binary.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test="test_batch.bin",
    names="batches.meta.txt",
    parse_batch=parse_batch_binary,
    parse_names=parse_names_binary,
)
PYTHON = Layout(
    archive="cifar-10-python.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    names="batches.meta",
    parse_batch=parse_batch_pickle,
    parse_names=parse_names_pickle,
)
LAYOUTS = (BINARY, PYTHON)


def load_cifar10(path: str | None) -> Source:
    """Read CIFAR-10 from an archive or an extracted folder; by default from the cache folder, downloaded if missing.

    Raises:
        DataError: the files are missing (and cannot be downloaded), damaged, or hold anything but CIFAR-10.
    """
    place = _usual_archive() if path is None else Path(path)
    if place.is_dir():
        layout, files = _read_folder(place)
    elif place.is_file():
        layout, files = _read_archive(place)
    else:
        names = " or ".join(layout.archive for layout in LAYOUTS)
        raise DataError(f"data 'cifar10': {place} does not exist; set data.path to {names}, or to its extracted folder")
    where = {name: f"{place}: {name}" for name in layout.files}
    classes = layout.parse_names(files[layout.names], where[layout.names])
    if len(classes) != NUM_CLASSES:
        raise DataError(f"{where[layout.names]}: {len(classes)} class names, expected {NUM_CLASSES}")
    train = [_part(layout.parse_batch(files[name], where[name]), where[name]) for name in layout.train]
    test = _part(layout.parse_batch(files[layout.test], where[layout.test]), where[layout.test])
    images = np.concatenate([part.images for part in train])
    labels = np.concatenate([part.labels for part in train])
    return Source(tuple(classes), Part(images, labels), test)


def cache_folder() -> Path:
    """Where downloaded data sets are kept: `$XDG_CACHE_HOME/lilliput`, by default `~/.cache/lilliput`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lilliput"


def download(folder: Path, layout: Layout = BINARY) -> Path:
    """Download an official archive into `folder`, showing progress, and check it before it gets its name.

    Raises:
        DataError: no network, or what arrived is not the official archive.
        FailureError: the disk is full or the folder cannot be written.
    """
    place = folder / layout.archive
    try:
        data = _fetch(layout.url, layout.archive)
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"data 'cifar10': {layout.url} cannot be downloaded ({reason}); put {BINARY.archive} or "
            f"{PYTHON.archive} into {folder}, or set data.path to such an archive or its extracted folder"
        ) from None
    _check(data, layout, layout.url)
    write_atomic(place, data)
    return place


def _fetch(url: str, name: str) -> bytes:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("download {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    data = bytearray()
    with (
        urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        size = response.headers.get("Content-Length")
        task = progress.add_task(name, total=int(size) if size and size.isdigit() else None)
        # The cap keeps a wrong server from filling the memory; the checksum then says that it is wrong.
        while len(data) < MAX_ARCHIVE_BYTES and (block := response.read(1 << 20)):
            data += block
            progress.update(task, completed=len(data))
    return bytes(data)


def _check(data: bytes, layout: Layout, where: str) -> None:
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != layout.md5:
        raise DataError(f"{where}: md5 {found}, the official {layout.archive} has {layout.md5}; get the file again")


def _usual_archive() -> Path:
    """The archive in the cache folder, checked; downloaded where there is none."""
    folder = cache_folder()
    for layout in LAYOUTS:
        place = folder / layout.archive
        if place.is_file():
            _check(_read(place), layout, str(place))
            return place
    return download(folder)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _read_folder(folder: Path) -> tuple[Layout, dict[str, bytes]]:
    for layout in LAYOUTS:
        for candidate in (folder, folder / layout.folder):
            present = [name for name in layout.files if (candidate / name).is_file()]
            if present:
                _require_all(present, layout, str(candidate))
                return layout, {name: _read(candidate / name) for name in layout.files}
        if (folder / layout.archive).is_file():
            return _read_archive(folder / layout.archive)
    names = " or ".join(f"{layout.train[0]} ..." for layout in LAYOUTS)
    raise DataError(f"data 'cifar10': {folder} holds neither an official archive nor its files ({names})")


def _read_archive(path: Path) -> tuple[Layout, dict[str, bytes]]:
    # Members are recognised by their exact official path and read into memory, so no path in an archive can do harm.
    wanted = {f"{layout.folder}/{name}": (layout, name) for layout in LAYOUTS for name in layout.files}
    found: dict[str, dict[str, bytes]] = {layout.archive: {} for layout in LAYOUTS}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                entry = wanted.get(member.name.removeprefix("./"))
                if entry is None or not member.isreg():
                    continue
                layout, name = entry
                if member.size > MAX_FILE_BYTES:
                    raise DataError(f"{path}: {member.name} has {member.size} bytes, allowed: {MAX_FILE_BYTES}")
                content = archive.extractfile(member)
                assert content is not None
                found[layout.archive][name] = content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole .tar.gz archive ({error}); get the file again") from None
    layout = max(LAYOUTS, key=lambda candidate: len(found[candidate.archive]))
    files = found[layout.archive]
    if not files:
        folders = " or ".join(f"{candidate.folder}/" for candidate in LAYOUTS)
        raise DataError(f"{path}: not a CIFAR-10 archive: nothing of {folders} in it")
    _require_all(list(files), layout, str(path))
    return layout, files


def _require_all(present: list[str], layout: Layout, where: str) -> None:
    missing = [name for name in layout.files if name not in present]
    if missing:
        raise DataError(f"{where}: {', '.join(missing)} missing; the official {layout.archive} has it")


def _part(batch: Batch, where: str) -> Part:
    values, labels = batch
    if values.ndim != 2 or values.shape[1] != PIXELS or len(values) != len(labels) or len(labels) == 0:
        raise DataError(f"{where}: {len(labels)} labels and values {values.shape}, expected n labels and (n, {PIXELS})")
    if labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise DataError(f"{where}: labels {labels.min()} to {labels.max()}, allowed: 0 to {NUM_CLASSES - 1}")
    images = values.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Part(np.ascontiguousarray(images), labels)
