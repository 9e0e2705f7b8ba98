"""Trainings that are compared with each other."""
