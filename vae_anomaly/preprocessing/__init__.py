"""Frames to tensors and back, one file for each modality, learned from training rows only."""
