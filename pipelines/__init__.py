"""The steps, callable without any server."""
