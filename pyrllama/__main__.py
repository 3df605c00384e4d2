"""``python -m pyrllama``: the command ``rllama``."""

import sys

from pyrllama.cli import main

sys.exit(main())
