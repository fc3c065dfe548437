"""The performance harness: each program says its question, its method and what it leaves out."""
