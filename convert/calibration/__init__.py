"""Calibration: measuring what a model's experts see of a text, and the file that keeps it for the packer."""
