"""What a teacher said, kept on disk, so that it need not be asked again."""
