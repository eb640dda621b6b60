"""Write requirements.lock: an exact pin of every package that the build and the extras need, transitive ones included.

Reads what the running environment has installed, so: change pyproject.toml, `pip install` the versions wanted, run
`make lock`. The file is a constraints file (`pip install -c requirements.lock ...`); it names no registry.
"""

import re
import sys
import tomllib
from collections.abc import Container, Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
# scikit-build-core asks for these by itself where the machine has none new enough, so no requirement names them.
BUILD_TOOLS = ("cmake", "ninja")
HEADER = """\
# Exact versions of everything that the build and the extras need. Written by `make lock`.
# A constraints file: pip install -c requirements.lock ".[train,dev]"
"""


def declared(without: Container[str] = ()) -> list[Requirement]:
    """Every requirement that pyproject.toml states: to build, of the base package and of each extra (not `without`)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    texts: list[str] = [*project["build-system"]["requires"], *BUILD_TOOLS, *project["project"]["dependencies"]]
    for extra, needed in project["project"]["optional-dependencies"].items():
        texts += [] if extra in without else needed
    return [Requirement(text) for text in texts]


def closure(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Canonical name -> installed version of the requirements and all that they require on this machine.

    Raises:
        PackageNotFoundError: one of them is not installed.
    """
    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(requirement, extra) for requirement in requirements for extra in ("", *requirement.extras)]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        package = distribution(name)
        # The local part (+cpu) says who built the file, not what it is: another machine may have another build.
        pins[name] = Version(package.version).public
        for text in package.requires or ():
            needed = Requirement(text)
            if _is_gpu_part(name, needed):
                continue
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(needed, inner) for inner in ("", *needed.extras)]
    return pins


def _is_gpu_part(parent: str, needed: Requirement) -> bool:
    # torch's CUDA builds pin their GPU libraries themselves; the CPU build of the same version has none.
    return parent == "torch" and any(part.operator == "==" for part in needed.specifier)


def pinned(text: str) -> dict[str, str]:
    """Name -> version of each line `name==version` of a lock file."""
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)$", text, flags=re.MULTILINE))


def main() -> int:
    try:
        pins = closure(declared())
    except PackageNotFoundError as error:
        print(f"lock: {error.name} is not installed here; pip install it first", file=sys.stderr)
        return 1
    LOCK.write_text(HEADER + "".join(f"{name}=={pins[name]}\n" for name in sorted(pins)), encoding="utf-8")
    print(f"{LOCK.name}: {len(pins)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
