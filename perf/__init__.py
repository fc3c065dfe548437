"""The performance harness: each program states its question, its method and what it does not show."""
