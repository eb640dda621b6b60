"""The command `lil`: one thin function a command. What a command needs is imported inside it, so help is quick.

Exit codes: 0 done; 1 the work failed; 2 the user's mistake; 130 interrupted. Errors are one line on stderr, and JSON is
all that stdout gets with `--json`.
"""

from lilliput.cli import bench, compress, data, evaluation, files, packing, recipes
from lilliput.cli.app import main

__all__ = ["bench", "compress", "data", "evaluation", "files", "main", "packing", "recipes"]
