"""Durable marker storages, one module each, so that none is imported that is not used."""
