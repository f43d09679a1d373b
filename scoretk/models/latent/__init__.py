"""Fields that users make of their own parts: variational autoencoders, autoregressive models."""
