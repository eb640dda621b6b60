"""Running a `model.lil`: the C runtime (c/), its binding and the session around it. numpy is all it needs."""

from lilliput.runtime import _lil


def isas() -> tuple[str, ...]:
    """The instruction sets that this build has kernels for and this processor can run, the best one last."""
    return tuple(_lil.isas())
