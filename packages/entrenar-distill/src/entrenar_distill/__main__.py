"""`python -m entrenar_distill`, which torchrun and accelerate launch start in every process."""

import sys

from entrenar_distill.cli import main

sys.exit(main(None))
