"""Merging an adapter into the files of a checkpoint, tensor by tensor, without loading the model."""
