"""Lilliput: Transformers small enough for the device.

`lilliput.open("model.lil").run(images)` runs a model file with numpy and the C runtime alone. What makes such a file
is in the other modules, which need the extra `lilliput[train]`.
"""

from lilliput.errors import ArtifactError, DataError, FailureError, InputError, RecipeError, UserError
from lilliput.runtime.opening import open
from lilliput.runtime.session import Session

__version__ = "0.1.0"
__all__ = [
    "ArtifactError",
    "DataError",
    "FailureError",
    "InputError",
    "RecipeError",
    "Session",
    "UserError",
    "__version__",
    "open",
]
