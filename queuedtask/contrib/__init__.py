"""Joins to other libraries, one module each; nothing of ours imports them."""
