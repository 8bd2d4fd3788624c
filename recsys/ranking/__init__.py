"""Candidates to ordered lists that keep the shop's rules, each item with its reason."""
