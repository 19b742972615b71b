"""OAuth: what the flows have in common."""
