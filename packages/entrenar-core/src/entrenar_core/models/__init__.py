"""Models to learn from and models to train: loading them, building a student, and the vocabulary that they share.

Nothing is imported here, so that what needs no torch (`heads`, `student_rules`) imports in no time.
"""
