"""Profiling on another machine over ssh: the local client, what it sends, and the remote server."""
