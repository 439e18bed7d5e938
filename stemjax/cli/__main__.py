"""``python -m stemjax.cli``."""

import sys

from stemjax.cli import main

sys.exit(main())
