"""Graphs on execution providers: which there are here, which is meant, and a session on it."""
