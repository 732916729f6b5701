"""The classifier of findings: its network, its training and its calibration."""
