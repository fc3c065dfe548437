"""One suite an interface, run against each of its implementations."""
