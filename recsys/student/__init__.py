"""The two-tower student: trained on hard and soft labels, needs no data engine and no FAISS."""
