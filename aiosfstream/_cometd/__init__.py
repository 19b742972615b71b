"""The CometD engine: a Bayeux session that recovers. It knows neither OAuth nor storages."""
