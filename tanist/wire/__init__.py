"""What travels between a client and a node: frames, batches and control messages, without I/O."""
