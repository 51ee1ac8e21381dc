"""entrenar-lora: plans, trains, merges, inspects, converts and extracts low-rank adapters.

Names are imported when they are first used, so that `--help` waits for nothing.
"""
