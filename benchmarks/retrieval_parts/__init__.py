"""The parts of `benchmarks/retrieval.py`, a module each."""
