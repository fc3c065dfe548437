"""A node's rules: post offices, catalog, dispatch and sessions, without I/O."""
