"""Building blocks that every package may use: errors, files, locks, paths, progress, signals, ranks, checkpoints."""
