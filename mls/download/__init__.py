"""Download data sets: from the network to a checked, unpacked folder, resumable at any point."""
