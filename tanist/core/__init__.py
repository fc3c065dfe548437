"""The client's rules: sessions, producers and consumers across failovers, without I/O."""
