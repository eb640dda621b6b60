"""Errors that a user can meet, and the exit code that the command line gives each.

Every message is one line that names what was wrong, where, and what is allowed.
"""


class UserError(ValueError):
    """The user asked for something impossible: settings, data or a file at fault. Exit code 2."""


class RecipeError(UserError):
    """A recipe field is unknown, of the wrong type, out of range, or the stages are in an impossible order."""


class DataError(UserError):
    """A data set is missing, or an image cannot be used."""


class ArtifactError(UserError):
    """A `.lil` file is truncated, altered, foreign, or of another version."""


class InputError(UserError):
    """An array given to a model has the wrong shape, dtype or values."""


class FailureError(RuntimeError):
    """The work itself failed (disk full, diverged training, a broken guarantee). Exit code 1."""
