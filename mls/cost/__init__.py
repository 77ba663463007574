"""Hours, memory and disk of experiments that have not run."""
