"""Losses of the student, one to a file."""
