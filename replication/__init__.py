"""Agreement and streams: how several nodes hold the same state, whatever that state is."""
