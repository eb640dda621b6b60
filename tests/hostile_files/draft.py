"""Taking a file apart, changing it, and laying it out again: docs/format.md, section 2, by struct offsets."""

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lilliput.program.ops import OPS

SECTION_NAMES = ("buffers", "tensors", "ops", "constants", "metadata", "golden")  # of version 1
SECTIONS = {1: SECTION_NAMES, 2: (*SECTION_NAMES, "vocabulary")}
FIRST_SECTION = {1: 192, 2: 256}
HEADER_FIELDS = {"version": (8, "<I"), "file_bytes": (16, "<Q"), "arena_bytes": (24, "<Q"), "input": (32, "<I")}
HEADER_FIELDS |= {"output": (36, "<I"), "sections": (40, "<I"), "max_tokens": (44, "<I")}
TABLE_FIELDS = {"kind": (0, "<I"), "count": (4, "<I"), "offset": (8, "<Q"), "bytes": (16, "<Q")}
RECORD_BYTES = {"buffers": 24, "tensors": 24, "ops": 40}
RECORD_FIELDS = {
    "buffers": {"dtype": (0, "<I"), "rows": (4, "<I"), "cols": (8, "<I"), "zero": (12, "<I"), "offset": (16, "<Q")},
    "tensors": {
        "format": (0, "<H"),
        "layout": (2, "<H"),
        "rows": (4, "<I"),
        "cols": (8, "<I"),
        "zero": (12, "<I"),
        "offset": (16, "<Q"),
    },
    "ops": {
        "kind": (0, "<H"),
        **{f"in{slot}": (2 + 2 * slot, "<H") for slot in range(3)},
        **{f"out{slot}": (8 + 2 * slot, "<H") for slot in range(2)},
        **{f"tensor{slot}": (12 + 2 * slot, "<H") for slot in range(4)},
        **{f"a{slot}": (20 + 4 * slot, "<I") for slot in range(5)},
    },
}


class Draft:
    """A file taken apart: edit header, table, records and payloads, then `build` lays it out and checksums it again."""

    def __init__(self, data: bytes) -> None:
        self.header = bytearray(data[:48])
        self.version = self.get_header("version")
        self.payloads: dict[str, bytearray] = {}
        self.counts: dict[str, int] = {}
        for number, name in enumerate(SECTIONS[self.version]):
            _, count, offset, size = struct.unpack_from("<IIQQ", data, 48 + 24 * number)
            self.payloads[name] = bytearray(data[offset : offset + size])
            self.counts[name] = count
        self.table_changes: list[tuple[str, str, int]] = []
        self.byte_changes: list[Callable[[bytearray], bytes | bytearray]] = []

    # Editing -------------------------------------------------------------------------------------

    def set_header(self, field: str, value: int) -> None:
        offset, code = HEADER_FIELDS[field]
        struct.pack_into(code, self.header, offset, value)

    def get_header(self, field: str) -> int:
        offset, code = HEADER_FIELDS[field]
        return int(struct.unpack_from(code, self.header, offset)[0])

    def set_table(self, section: str, field: str, value: int) -> None:
        """Applied after the layout, so it lies about where things are."""
        self.table_changes.append((section, field, value))

    def set(self, section: str, index: int, field: str, value: int) -> None:
        offset, code = RECORD_FIELDS[section][field]
        struct.pack_into(code, self.payloads[section], index * RECORD_BYTES[section] + offset, value)

    def get(self, section: str, index: int, field: str) -> int:
        offset, code = RECORD_FIELDS[section][field]
        return int(struct.unpack_from(code, self.payloads[section], index * RECORD_BYTES[section] + offset)[0])

    def append(self, section: str, **fields: int) -> int:
        """A record of zeros and `fields`; gives its index."""
        self.payloads[section] += bytes(RECORD_BYTES[section])
        self.counts[section] += 1
        for field, value in fields.items():
            self.set(section, self.counts[section] - 1, field, value)
        return self.counts[section] - 1

    def become(self, version: int) -> None:
        """The same in the other version: with an empty vocabulary, or without one."""
        self.version = version
        self.set_header("version", version)
        self.set_header("sections", len(SECTIONS[version]))
        self.payloads["vocabulary"], self.counts["vocabulary"] = bytearray(), 0

    def find(self, kind: str, number: int = 0) -> int:
        """Index of the `number`-th op of a kind."""
        found = [i for i in range(self.counts["ops"]) if self.get("ops", i, "kind") == OPS[kind].id]
        return found[number]

    def set_constant(self, tensor: int, position: int, value: bytes) -> None:
        """Overwrite stored bytes, `position` bytes into a tensor."""
        start = self.get("tensors", tensor, "offset") + position
        self.payloads["constants"][start : start + len(value)] = value

    def edit_metadata(self, change: Callable[[dict[str, Any]], Any]) -> None:
        tree = json.loads(self.payloads["metadata"])
        change(tree)
        self.payloads["metadata"] = bytearray(json.dumps(tree).encode())

    # Building ------------------------------------------------------------------------------------

    def build(self) -> bytes:
        data = bytearray(FIRST_SECTION[self.version])
        for number, name in enumerate(SECTIONS[self.version]):
            data += bytes(-len(data) % 64)
            struct.pack_into(
                "<IIQQ", data, 48 + 24 * number, number + 1, self.counts[name], len(data), len(self.payloads[name])
            )
            data += self.payloads[name]
        data[:48] = self.header
        struct.pack_into("<Q", data, 16, len(data))
        for section, field, value in self.table_changes:
            offset, code = TABLE_FIELDS[field]
            struct.pack_into(code, data, 48 + 24 * SECTION_NAMES.index(section) + offset, value)
        seal(data)
        for change in self.byte_changes:
            data = bytearray(change(data))
        return bytes(data)


def seal(data: bytearray) -> bytearray:
    """Put the right checksum into a whole file."""
    struct.pack_into("<I", data, 12, zlib.crc32(data[16:]))
    return data


Edit = Callable[[Draft], None]


@dataclass(frozen=True)
class Case:
    """A hostile file in the making: `edit` spoils a draft of the good file."""

    name: str
    message: str
    edit: Edit
    metadata_only: bool = False
