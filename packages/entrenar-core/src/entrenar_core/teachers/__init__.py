"""Where the signals that a student learns from come from."""
