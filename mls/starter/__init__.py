"""``mls init``: an experiment file for one's own pictures, with a reason beside each value."""
