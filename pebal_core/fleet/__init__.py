"""Finds the moments in many recordings that are worth looking at."""
