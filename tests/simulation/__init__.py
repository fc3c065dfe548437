"""The seeded simulator: the very cores that run in production, on simulated time."""
