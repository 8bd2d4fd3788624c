"""The sample shop: an invented catalogue, invented shoppers and their log, written like a real shop's export."""
