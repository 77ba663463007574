"""Leaves that everything may use: errors, files, locks, paths, progress, signals, ranks, device, checkpoints."""
