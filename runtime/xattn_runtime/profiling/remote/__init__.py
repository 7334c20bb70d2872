"""Profiling on another machine over ssh: the client here, what it sends, and the server there."""
