"""The experiment file: its schema, loading, references, sweeps, identity; and facts that planning needs."""
