"""Many steps: the loop, compiled steps, batches of chains, records, checkpoints and draws."""
