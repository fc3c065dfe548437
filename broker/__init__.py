"""One node of the broker."""
