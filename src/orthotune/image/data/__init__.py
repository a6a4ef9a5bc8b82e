"""Images and captions as training data."""
