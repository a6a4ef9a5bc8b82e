"""What every training job shares: data, models, adapters, the trainer, checkpoints and records."""
