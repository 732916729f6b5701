"""Metrics of generated images: fidelity, diversity, similarity, and the intervals around them."""
