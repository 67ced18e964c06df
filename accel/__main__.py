"""`python -m accel` is the `accel` command."""

import sys

from accel.cli.main import main

if __name__ == "__main__":  # a worker process imports this file under another name
    sys.exit(main())
