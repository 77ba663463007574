"""Evaluate a backbone by fine-tuning it on dense tasks."""
