"""Evaluate a backbone: classifiers and retrieval on its frozen features, and classifiers trained on images."""
