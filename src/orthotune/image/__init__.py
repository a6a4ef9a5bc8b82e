"""Image models: families, data, control, adapters and one training loop on accelerate."""
