"""Pretraining methods; their mathematics as pure functions."""
