"""Other people's networks, and ours under their names."""
