"""The protocols of agreement and replication, without I/O, clock or chance."""
