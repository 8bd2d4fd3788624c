"""Item vectors to an index, and user vectors to candidates."""
