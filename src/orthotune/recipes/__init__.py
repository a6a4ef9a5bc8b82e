"""The recipes: one file per training job, from settings to a finished run directory, and the presets."""
