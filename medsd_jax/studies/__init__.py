"""Whole studies: the papers' adaptations side by side, and the demo."""
