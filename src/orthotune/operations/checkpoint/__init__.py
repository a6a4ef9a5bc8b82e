"""Merge an adapter into the files of a base model, tensor by tensor, without loading the model."""
