"""The command `lil`, and `python -m lilliput`: catches Ctrl-C while the command line itself is still being imported."""

import sys


def main() -> int:
    try:
        from lilliput.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("lil: interrupted", file=sys.stderr)  # noqa: T201 (a message to the user)
        return 130


if __name__ == "__main__":
    sys.exit(main())
