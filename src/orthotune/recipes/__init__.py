"""One file per training job, from settings to a finished run directory, with the presets."""
