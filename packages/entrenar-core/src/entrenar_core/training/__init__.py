"""The training loop and the jobs that are made of it."""
