"""What every training run shares: its directory, lock, record, checkpoints, signals and processes."""
