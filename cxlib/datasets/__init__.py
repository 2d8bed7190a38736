"""Readers of folders of labelled images."""
