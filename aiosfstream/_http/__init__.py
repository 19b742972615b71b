"""One HTTP request and its answer. Nothing here knows Bayeux."""
