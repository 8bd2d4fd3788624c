"""The BERT teacher: reads a user's history and candidates, scores pairs, and tells the student through a table."""
