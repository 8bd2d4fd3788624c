"""SASRec of other libraries, trained on our sequences: each script runs in an environment of its own."""
