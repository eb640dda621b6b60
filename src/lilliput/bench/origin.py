"""Which source tree a measurement was made with."""

import subprocess
from pathlib import Path


def commit() -> str | None:
    """The commit of the source tree, with `-dirty` where the package was changed since; None where it is not one."""
    package = Path(__file__).parent.parent
    root = package.parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Installed into somebody else's repository the answer would be that one's.
        if not (Path(git("rev-parse", "--show-toplevel")).samefile(root) and git("ls-files", str(package))):
            return None
        changed = git("status", "--porcelain", "--untracked-files=no", str(package))
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
