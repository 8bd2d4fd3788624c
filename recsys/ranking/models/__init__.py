"""What orders a user's candidates by their features, one model to a file."""
