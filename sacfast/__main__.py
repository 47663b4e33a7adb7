"""`python -m sacfast`: the same as the `sacfast` command."""

import sys

from sacfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
