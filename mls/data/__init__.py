"""From a source to a verified store of images, and from the store to batches of views."""
