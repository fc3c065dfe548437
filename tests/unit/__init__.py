"""One rule a test; mirrors the source."""
