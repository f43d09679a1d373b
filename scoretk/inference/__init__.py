"""What a user asks of a field: samples, latents, likelihoods, normalising constants."""
