"""Language models: data, losses and trainers on TRL."""
