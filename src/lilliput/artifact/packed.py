"""`model.lilz`: a `model.lil` packed for transport, as docs/format.md, section 3, defines it.

One raw Deflate stream (RFC 1951), whose parts follow the file's tensors. The codes of weights without a pattern have no
repetitions that are worth a match, so their parts have Huffman codes alone, which come within about 3 % of the codes'
entropy (two 4-bit codes are one symbol; tests/test_packed.py). LZMA, tried on the same files, came no nearer.
"""

import mmap
import zlib
from itertools import pairwise

import numpy as np

from lilliput.artifact.layout import MAGIC as MODEL_MAGIC
from lilliput.artifact.layout import TENSOR
from lilliput.artifact.reader import from_bytes, verified_sections
from lilliput.errors import ArtifactError

SUFFIX = ".lilz"
MAGIC = b"\x89LIZ\r\n\x1a\n"
VERSION = 1
HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("payload_bytes", "<u4"),
        ("payload_crc", "<u4"),
        ("unpacked_bytes", "<u4"),
        ("unpacked_crc", "<u4"),
    ]
)
assert HEADER.itemsize == 28
MAX_BYTES = 2**31 - 1
MAX_RATIO = 1032  # Deflate's: 258 bytes from two bits
MODEL_HEAD = 24  # magic, version, checksum, the file's bytes (docs/format.md, section 2)
MIN_PART = 512  # bytes that earn Huffman codes of their own
STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)
RAW, LEVEL, MEMORY = -zlib.MAX_WBITS, 9, 9  # no header of zlib's; the best that it can


def is_packed(data: bytes | mmap.mmap) -> bool:
    """Whether a file begins like a packed one."""
    return data[: len(MAGIC)] == MAGIC


def pack(data: bytes, name: str) -> bytes:
    """The packed file of a `model.lil`'s bytes, which are verified; `name` stands for them in errors.

    Raises:
        ArtifactError: they are packed already, not those of a valid file, or more than 2^31-1.
    """
    if is_packed(data):
        raise ArtifactError(f"{name}: packed already; give a model.lil")
    if len(data) > MAX_BYTES:
        raise ArtifactError(f"{name}: {len(data)} bytes; at most {MAX_BYTES} can be packed")
    cuts = _cuts(data, from_bytes(data, name).version)
    parts = [data[begin:end] for begin, end in pairwise(cuts)]
    payload = b"".join([*map(_part, parts[:-1]), _part(parts[-1], zlib.Z_FINISH)])
    checksums = (zlib.crc32(payload), len(data), zlib.crc32(data))
    packed = np.array((MAGIC, VERSION, len(payload), *checksums), HEADER).tobytes() + payload
    assert unpack(packed, name) == data, "what is packed is what was given"
    return packed


def unpack(data: bytes | mmap.mmap, name: str) -> bytes:
    """The bytes of the `model.lil` that a packed file holds, which are not verified; `name` stands for it in errors.

    Raises:
        ArtifactError: not packed, truncated, altered, of another version, or its content is not what its header says.
    """
    try:
        return _unpack(data)
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from None


def _cuts(data: bytes, version: int) -> list[int]:
    """Where parts begin, and the end of the last: around every section and tensor that is worth it."""
    sections = verified_sections(data, version)
    records, constants = sections["tensors"], sections["constants"]
    tensors = np.frombuffer(data, TENSOR, records.records, records.offset)["offset"].astype(np.int64) + constants.offset
    starts = sorted({0, len(data), *(section.offset for section in sections.values()), *tensors.tolist()})
    cuts = {0, len(data)}
    for begin, end in pairwise(starts):
        if end - begin >= MIN_PART:
            cuts |= {begin, end}
    return sorted(cuts)


def _part(content: bytes, flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
    """A piece of a Deflate stream, which refers to nothing before it and ends on a byte."""
    coders = [zlib.compressobj(LEVEL, zlib.DEFLATED, RAW, MEMORY, strategy) for strategy in STRATEGIES]
    return min((coder.compress(content) + coder.flush(flush) for coder in coders), key=len)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ArtifactError(message)


def _unpack(data: bytes | mmap.mmap) -> bytes:
    size = len(data)
    _require(is_packed(data), f"not a packed file; give one that lil pack wrote (*{SUFFIX})")
    _require(size >= HEADER.itemsize, f"truncated: {size} bytes; the header of a packed file takes {HEADER.itemsize}")
    header = np.frombuffer(data, HEADER, 1)[0]
    version, wanted = int(header["version"]), HEADER.itemsize + int(header["payload_bytes"])
    _require(version == VERSION, f"has version {version} of packed files; this build reads version {VERSION}")
    _require(size >= wanted, f"truncated: {size} bytes of {wanted}")
    _require(size == wanted, f"altered or damaged: {size} bytes; its header says {wanted}")
    payload = memoryview(data)[HEADER.itemsize :]
    _require_crc("payload", payload, int(header["payload_crc"]))
    content = _inflate(payload, int(header["unpacked_bytes"]))
    _require_crc("content", content, int(header["unpacked_crc"]))
    return content


def _require_crc(what: str, content: bytes | memoryview, wanted: int) -> None:
    crc = zlib.crc32(content)
    _require(crc == wanted, f"altered or damaged: the {what}'s checksum is {crc:08x}; its header says {wanted:08x}")


def _inflate(payload: memoryview, size: int) -> bytes:
    """The `size` bytes that the payload decodes to; never many more, whatever it is."""
    most = min(MAX_BYTES, MAX_RATIO * len(payload))
    _require(size <= most, f"its header says {size} bytes unpacked; {len(payload)} bytes can hold at most {most}")
    decoder = zlib.decompressobj(RAW)
    try:
        # What does not begin like a model of that size is not decoded any further, however much memory it asks for.
        head = decoder.decompress(payload, MODEL_HEAD)
        _require(not is_packed(head), "a packed file in a packed file; must hold a model.lil")
        _require(head.startswith(MODEL_MAGIC), "does not hold a .lil file (its content does not begin like one)")
        inner = int.from_bytes(head[MODEL_HEAD - 8 :], "little")
        _require(inner == size, f"its header says {size} bytes unpacked; those of the model in it say {inner}")
        content = head + decoder.decompress(decoder.unconsumed_tail, size + 1 - len(head))
    except zlib.error as error:
        raise ArtifactError(f"altered or damaged: its payload cannot be decoded ({error})") from None
    _require(len(content) <= size, f"unpacks to more than the {size} bytes that its header says")
    _require(decoder.eof, f"its payload ends after {len(content)} bytes of content; its header says {size}")
    _require(len(content) == size, f"unpacks to {len(content)} bytes; its header says {size}")
    _require(not decoder.unused_data, f"{len(decoder.unused_data)} bytes follow the end of its payload's stream")
    return content
