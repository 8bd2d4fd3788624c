"""Models of what follows what, which teacher and student both are built on: towers, their losses and their training."""
