"""What the commands return, one module for each."""
