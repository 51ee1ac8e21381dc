"""What the commands return: plain values that JSON carries and views show. Nothing heavy is imported here."""
