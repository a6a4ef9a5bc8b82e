"""Image models: what each family says of itself, their losses, pictures and captions, and the one training loop."""
