"""Sockets, timers and files: what carries out a core's effects."""
