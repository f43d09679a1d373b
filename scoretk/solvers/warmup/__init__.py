"""What warmup learns: an approach from afar, step sizes, scales, lengths of trajectories."""
