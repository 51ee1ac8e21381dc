"""`python -m entrenar_inspect`."""

import sys

from entrenar_inspect.cli import main

sys.exit(main(None))
