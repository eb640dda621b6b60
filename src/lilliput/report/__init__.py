"""What a file holds and what a run achieved, for people: itemised bytes, tables, and one self-contained page."""

from lilliput.report.images import encode_image
from lilliput.report.inspect import inspect_file
from lilliput.report.page import render

__all__ = ["encode_image", "inspect_file", "render"]
