"""What shows how good it is: every built-in model through every solver that serves it, and in `bench` the published tables."""
