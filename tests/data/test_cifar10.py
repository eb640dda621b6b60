import gzip
import hashlib
import io
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lilliput.config import DataSettings
from lilliput.data import cifar10, load
from lilliput.data.cifar10 import BINARY, PYTHON, download, load_cifar10
from lilliput.data.dataset import Source
from lilliput.errors import DataError, FailureError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_BATCH = 20
NUM_BATCHES = 6  # five of training images and one of test images


def batch_images(number: int) -> np.ndarray:
    """uint8 [20, 32, 32, 3]"""
    return np.random.default_rng(number).integers(0, 256, size=(PER_BATCH, 32, 32, 3), dtype=np.uint8)


def batch_labels(number: int) -> np.ndarray:
    return (np.arange(PER_BATCH) * 3 + number) % 10


def planes(images: np.ndarray) -> np.ndarray:
    """The official order: all red values of an image row by row, then green, then blue."""
    return np.stack([images[..., channel].reshape(len(images), -1) for channel in range(3)], axis=1).reshape(-1, 3072)


def binary_files() -> dict[str, bytes]:
    batches = [
        np.column_stack([batch_labels(number), planes(batch_images(number))]).astype(np.uint8).tobytes()
        for number in range(NUM_BATCHES)
    ]
    return dict(zip((*BINARY.train, BINARY.test), batches, strict=True)) | {
        BINARY.names: ("\n".join(NAMES) + "\n\n").encode()
    }


def python_files(protocol: int, keys: type) -> dict[str, bytes]:
    def key(name: str) -> Any:
        return name.encode() if keys is bytes else name

    batches = [
        {
            key("batch_label"): key(f"batch {number}"),
            key("data"): planes(batch_images(number)),
            key("labels"): batch_labels(number).tolist(),
            key("filenames"): [key(f"{index}.png") for index in range(PER_BATCH)],
        }
        for number in range(NUM_BATCHES)
    ]
    names = {key("num_cases_per_batch"): PER_BATCH, key("label_names"): [key(name) for name in NAMES]}
    trees = dict(zip((*PYTHON.train, PYTHON.test, PYTHON.names), [*batches, names], strict=True))
    return {name: pickle.dumps(tree, protocol) for name, tree in trees.items()}


def write_archive(path: Path, files: dict[str, bytes], folder: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}" if folder else name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def assert_is_the_made_set(source: Source) -> None:
    assert source.classes == tuple(NAMES)
    np.testing.assert_array_equal(source.train.images, np.concatenate([batch_images(number) for number in range(5)]))
    np.testing.assert_array_equal(source.train.labels, np.concatenate([batch_labels(number) for number in range(5)]))
    assert source.test is not None
    np.testing.assert_array_equal(source.test.images, batch_images(5))
    np.testing.assert_array_equal(source.test.labels, batch_labels(5))


def test_binary_archive(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "set.tar.gz", binary_files(), BINARY.folder)
    assert_is_the_made_set(load_cifar10(str(path)))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("keys", [str, bytes])
def test_python_archive(tmp_path: Path, protocol: int, keys: type) -> None:
    path = write_archive(tmp_path / "set.tar.gz", python_files(protocol, keys), PYTHON.folder)
    assert_is_the_made_set(load_cifar10(str(path)))


def python2_pickle(values: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2 and its numpy wrote (protocol 2, text as byte strings), opcode by opcode."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    def integer(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    raw = values.tobytes()
    dtype = b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + short(b"|") + b"NNN" + integer(-1) + integer(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
    shape = integer(values.shape[0]) + integer(values.shape[1]) + b"\x86"
    array += b"(K\x01" + shape + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    pairs = short(b"data") + array + short(b"labels") + b"](" + b"".join(integer(label) for label in labels) + b"e"
    return b"\x80\x02}(" + pairs + b"u."


def test_pickles_of_python_2(tmp_path: Path) -> None:
    files = python_files(2, bytes)
    for number, name in enumerate((*PYTHON.train, PYTHON.test)):
        files[name] = python2_pickle(planes(batch_images(number)), batch_labels(number).tolist())
    assert_is_the_made_set(load_cifar10(str(write_folder(tmp_path / "py2", files))))


@pytest.mark.parametrize("layout", [BINARY, PYTHON], ids=["binary", "python"])
@pytest.mark.parametrize("place", ["folder", "parent", "archive inside"])
def test_folders(tmp_path: Path, layout: cifar10.Layout, place: str) -> None:
    files = binary_files() if layout is BINARY else python_files(4, bytes)
    if place == "archive inside":
        write_archive(tmp_path / layout.archive, files, layout.folder)
        path = tmp_path
    else:
        folder = write_folder(tmp_path / layout.folder, files)
        path = folder if place == "folder" else tmp_path
    assert_is_the_made_set(load_cifar10(str(path)))


def test_load_splits_the_training_part_only(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "set.tar.gz", binary_files(), BINARY.folder)
    dataset = load(DataSettings(name="cifar10", path=str(path), validation_fraction=0.2))
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [80, 20, 20]
    assert dataset.image_shape == (32, 32, 3)
    np.testing.assert_array_equal(dataset.test.images, batch_images(5))


class Gadget:
    """A pickle of this runs a shell command when it is loaded the plain way."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    data = pickle.dumps({"data": Gadget(f"touch {proof}"), "labels": []})
    files = python_files(4, str) | {PYTHON.train[2]: data}
    with pytest.raises(DataError, match=r"data_batch_3: not a CIFAR-10 pickle \(it names (posix|nt)\.system"):
        load_cifar10(str(write_archive(tmp_path / "set.tar.gz", files, PYTHON.folder)))
    assert not proof.exists()
    pickle.loads(data)  # the gadget is a real one
    assert proof.exists()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"cbuiltins\neval\n(S'1'\ntR.", id="eval"),
        pytest.param(b"cnumpy\nndarray\n(K\x05tR.", id="an array of any size"),
        pytest.param(b"cnumpy\nload\n(S'x'\ntR.", id="another function of numpy"),
        pytest.param(b"cnumpy\ndtype\n(S'O8'\ntR.", id="an array of objects"),
        pytest.param(b"c_codecs\nencode\n(Vtext\nVrot13\ntR.", id="another codec"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x80\x04garbage", id="garbage"),
        pytest.param(pickle.dumps([1, 2]), id="a list"),
        pytest.param(pickle.dumps({"labels": [1]}), id="no values"),
        pytest.param(pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": ["1"]}), id="labels of text"),
        pytest.param(pickle.dumps({"data": np.zeros((1, 3072)), "labels": [1]}), id="values of another type"),
        pytest.param(pickle.dumps({"data": np.zeros((1, 3071), np.uint8), "labels": [1]}), id="too few pixels"),
        pytest.param(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}), id="too few labels"),
        pytest.param(pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), id="label too high"),
    ],
)
def test_a_bad_pickle_is_named(tmp_path: Path, data: bytes) -> None:
    files = python_files(4, str) | {PYTHON.test: data}
    with pytest.raises(DataError, match=r"py: test_batch: "):
        load_cifar10(str(write_folder(tmp_path / "py", files)))


@pytest.mark.parametrize("names", [{"label_names": [1] * 10}, {"label_names": NAMES[:9]}, {}])
def test_bad_class_names_are_named(tmp_path: Path, names: dict[str, Any]) -> None:
    files = python_files(4, str) | {PYTHON.names: pickle.dumps(names)}
    with pytest.raises(DataError, match=r"batches\.meta: "):
        load_cifar10(str(write_folder(tmp_path / "py", files)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are not whole records"),
        (bytes(3072), "3072 bytes are not whole records"),
        (bytes([11]) + bytes(3072), "labels 11 to 11, allowed: 0 to 9"),
    ],
)
def test_a_bad_binary_batch_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    files = binary_files() | {BINARY.train[3]: data}
    with pytest.raises(DataError, match=rf"data_batch_4\.bin: {message}"):
        load_cifar10(str(write_folder(tmp_path / "bin", files)))


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "set.tar.gz", binary_files(), BINARY.folder)
    data = path.read_bytes()
    for length in (0, 1, 100, len(data) // 2, len(data) - 20_000):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"set\.tar\.gz: not a whole \.tar\.gz archive"):
            load_cifar10(str(path))


@pytest.mark.parametrize("data", [b"not an archive", gzip.compress(b"not a tar file" * 100, mtime=0)])
def test_a_foreign_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "set.tar.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"set\.tar\.gz: not a whole \.tar\.gz archive"):
        load_cifar10(str(tmp_path / "set.tar.gz"))


def test_missing_members_are_named(tmp_path: Path) -> None:
    files = {name: data for name, data in binary_files().items() if "5" not in name and "meta" not in name}
    with pytest.raises(DataError, match=r"data_batch_5\.bin, batches\.meta\.txt missing"):
        load_cifar10(str(write_archive(tmp_path / "set.tar.gz", files, BINARY.folder)))
    with pytest.raises(DataError, match=r"data_batch_5\.bin, batches\.meta\.txt missing"):
        load_cifar10(str(write_folder(tmp_path / "bin", files)))


def test_paths_and_links_in_an_archive_do_no_harm(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = inner / "set.tar.gz"
    hostile = ("../escaped", "/tmp/../escaped", f"../{BINARY.folder}/{BINARY.test}")
    with tarfile.open(path, "w:gz") as archive:
        for name in hostile:
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo(f"{BINARY.folder}/{BINARY.test}")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="nothing of cifar-10-batches-bin/"):
        load_cifar10(str(path))
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["inner", "set.tar.gz"]


def test_an_oversized_member_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "MAX_FILE_BYTES", 1000)
    with pytest.raises(DataError, match=r"data_batch_1\.bin has \d+ bytes, allowed: 1000"):
        load_cifar10(str(write_archive(tmp_path / "set.tar.gz", binary_files(), BINARY.folder)))


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; set data\.path to cifar-10-binary\.tar\.gz or"):
        load_cifar10(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="holds neither an official archive nor its files"):
        load_cifar10(str(tmp_path))


# Downloads, from a file:// address in the place of the official one.


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> cifar10.Layout:
    """The binary layout with a small archive behind its address; the cache folder is empty."""
    server = tmp_path / "server"
    server.mkdir()
    path = write_archive(server / "archive", binary_files(), BINARY.folder)
    layout = replace(BINARY, url=path.as_uri(), md5=hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar10, "LAYOUTS", (layout, PYTHON))
    monkeypatch.setattr(cifar10.download, "__defaults__", (layout,))
    return layout


def test_the_official_addresses_and_checksums() -> None:
    assert BINARY.url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert BINARY.md5 == "c32a1d4ab5d03f1284b67883e8d87530"
    assert PYTHON.url == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert PYTHON.md5 == "c58f30108f718f92721af3b95e74349a"


def test_without_a_path_the_set_is_downloaded_once(served: cifar10.Layout, tmp_path: Path) -> None:
    assert_is_the_made_set(load_cifar10(None))
    archive = tmp_path / "cache" / "lilliput" / BINARY.archive
    assert [entry.name for entry in archive.parent.iterdir()] == [archive.name]
    (tmp_path / "server" / "archive").unlink()
    assert_is_the_made_set(load_cifar10(None))


def test_a_download_with_a_wrong_checksum_leaves_nothing(served: cifar10.Layout, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"md5 [0-9a-f]{32}, the official cifar-10-binary\.tar\.gz has 000"):
        download(tmp_path / "folder", replace(served, md5="0" * 32))
    assert not (tmp_path / "folder").exists()


def test_an_altered_archive_in_the_cache_is_refused(served: cifar10.Layout, tmp_path: Path) -> None:
    place = tmp_path / "cache" / "lilliput" / PYTHON.archive
    place.parent.mkdir(parents=True)
    write_archive(place, python_files(4, bytes), PYTHON.folder)
    with pytest.raises(DataError, match=rf"{PYTHON.archive}: md5 .* has {PYTHON.md5}"):
        load_cifar10(None)


def test_no_network_says_what_to_put_where(served: cifar10.Layout, tmp_path: Path) -> None:
    (tmp_path / "server" / "archive").unlink()
    with pytest.raises(DataError, match=r"cannot be downloaded \(.*\); put cifar-10-binary\.tar\.gz or") as caught:
        load_cifar10(None)
    assert str(tmp_path / "cache" / "lilliput") in str(caught.value)
    assert "data.path" in str(caught.value)


def test_a_cache_that_cannot_be_written(served: cifar10.Layout, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(FailureError, match="cannot write"):
        load_cifar10(None)


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cifar10.cache_folder() == tmp_path / ".cache" / "lilliput"
