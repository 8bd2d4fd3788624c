"""What the data is like, told to people: in a page with plots, and as JSON for alarms."""
