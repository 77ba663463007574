"""Tables and figures, made from the metrics of a run."""
