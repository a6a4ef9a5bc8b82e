"""What an adapter does to each layer, what that says about its training, and what to do about it."""
