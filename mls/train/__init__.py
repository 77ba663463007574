"""Pretraining: loop, schedule, optimiser, log, online kNN."""
