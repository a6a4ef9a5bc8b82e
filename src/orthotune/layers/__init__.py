"""Layers with rotations: the bookkeeping is written once in ``base``, each kind states its matrices and its forward."""
