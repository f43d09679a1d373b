"""What warmup learns: step sizes, scales, lengths of trajectories."""
