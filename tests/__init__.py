"""The tests. Nothing that is shipped imports them."""
