"""Logs and catalogue in, `Dataset` out. Only `recsys.ingest.ingest` needs a data engine; the rest reads Arrow."""
