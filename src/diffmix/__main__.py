"""`python -m diffmix`, which is also what torchrun starts."""

import sys

from diffmix.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
