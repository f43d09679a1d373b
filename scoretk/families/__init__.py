"""The built-in models, one family a file, registered as plugins in `specs`."""
