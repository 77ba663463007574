"""From the network to a folder: what to fetch, and how not to be let down."""
