"""From an experiment to artifacts on disk: plan, artifact store, running a stage, status, garbage collection."""
