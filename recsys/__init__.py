"""recsys: an end-to-end recommender for online shops."""

__version__ = "0.1.0"
