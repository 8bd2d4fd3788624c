"""The ingest stage's job, written in other libraries: generated logs, the job as pandas and as Polars do it."""
