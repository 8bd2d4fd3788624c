"""Losses on the log itself, one file each."""
