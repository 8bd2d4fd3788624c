"""Shops for the nightly benchmarks and the tests of the nightly job: a small one, and one that lives for a year."""
