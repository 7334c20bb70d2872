"""Graphs on execution providers: which this machine has, which one is meant, and a session on it."""
