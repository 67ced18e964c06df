"""`python -m accel` is the `accel` command."""

import sys

from accel.cli.main import main

sys.exit(main())
