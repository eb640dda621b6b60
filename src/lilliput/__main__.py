"""`python -m lilliput` is `lil`."""

import sys

from lilliput.cli import main

if __name__ == "__main__":
    sys.exit(main())
