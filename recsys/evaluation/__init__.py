"""Metrics, baselines, significance and the report: how good are the recommendations, and how sure is that."""
