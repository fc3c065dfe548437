"""The Tanist client: what applications import. It needs nothing of the broker."""
