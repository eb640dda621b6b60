"""Hostile `.lil` files: one for each MUST of docs/format.md and each class of model-loading CVE, and the good files.

A test with the argument `hostile_file` runs on each (tests/conftest.py); `good_file` and `good_program` are fixtures.
Every file has a correct size and checksum unless those are what is wrong, so the check behind them is reached. Written
from the page (struct offsets, a layout of its own), so that a mistake of the writer is not repeated here.
"""

from functools import cache
from typing import NamedTuple

from .container import counts, gaps, golden, metadata, outside, table
from .draft import Case, Draft
from .levels import additive_codes, images_of_levels, levels, scales, version_1_additive, version_1_without_scales
from .operations import attributes, flow, slots
from .programs import good_file, good_program, long_attention, long_linear, written_input
from .records import blocks, buffers, constants, tensors
from .sequence_programs import good_sequence_file, good_sequence_program, levels_image_file, table_image_file
from .sequences import images_of_version_2, sequence_golden, sequence_header, sequence_ops, sequence_records, vocabulary

__all__ = [
    "HostileFile",
    "good_file",
    "good_program",
    "good_sequence_file",
    "good_sequence_program",
    "hostile_files",
    "table_image_file",
]

OPS_GROUPS = (slots, attributes, flow, version_1_without_scales, version_1_additive)
GROUPS = (outside, table, counts, gaps, buffers, tensors, blocks, constants, *OPS_GROUPS, golden, metadata)
SEQUENCE_GROUPS = (
    sequence_header,
    sequence_records,
    sequence_ops,
    sequence_golden,
    vocabulary,
    levels,
    scales,
    additive_codes,
)


class HostileFile(NamedTuple):
    """`message` is a regular expression that the Python reader's error matches.

    `metadata_only`: the C runtime, which never parses the metadata, accepts the file; the Python half must not.
    """

    name: str
    data: bytes
    message: str
    metadata_only: bool


@cache
def hostile_files() -> tuple[HostileFile, ...]:
    """The whole corpus."""
    bases = (
        (good_file(), GROUPS),
        (good_sequence_file(), SEQUENCE_GROUPS),
        (table_image_file(), (images_of_version_2,)),
        (levels_image_file(), (images_of_levels,)),
    )
    return (
        *(_finish(base, case) for base, groups in bases for group in groups for case in group()),
        HostileFile("flow-input-written", written_input(), "writes buffer 0, which is the input", False),
        HostileFile("linear-k-above-65536", long_linear(), r"codes' cols \(K\) is 65537", False),
        HostileFile("attention-tokens-above-65536", long_attention(), "number of tokens is 65537", False),
    )


def _finish(base: bytes, case: Case) -> HostileFile:
    draft = Draft(base)
    case.edit(draft)
    data = draft.build()
    assert data != base, f"{case.name} changes nothing"
    return HostileFile(case.name, data, case.message, case.metadata_only)
