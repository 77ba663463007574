"""What is to be made: the experiment file, its jobs, their identity, and artifacts on disk."""
