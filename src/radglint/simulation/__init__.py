"""Simulated findings of known place and size, put into real normal images for training and for tests."""
