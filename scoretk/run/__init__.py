"""Many steps: the driver, compiled steps, batches of chains, what is recorded, checkpoints and
draws.
"""
