"""What warmup does before a kernel's own steps can be tuned."""
