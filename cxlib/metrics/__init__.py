"""Judges of anybody's maps."""
