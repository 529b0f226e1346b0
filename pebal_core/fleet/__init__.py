"""Many recordings: which moments of them are worth looking at."""
