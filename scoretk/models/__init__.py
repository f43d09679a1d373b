"""The built-in models, registered as plugins in `specs`."""
