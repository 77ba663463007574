"""From a source to a verified image store, and from the store to batches of views."""
