"""`python -m entrenar_lora`."""

import sys

from entrenar_lora.cli import main

sys.exit(main(None))
