"""Vector search and batch recommendation of other libraries and of ours: each script is a process of its own."""
