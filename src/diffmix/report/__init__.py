"""Finished runs as one HTML page: what was reached, how sure that is, what it cost, where it fails."""
