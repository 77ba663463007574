"""The training engine: loop, schedule, checkpoints, interruption, progress."""
