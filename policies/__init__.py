"""Recovery policies, one a file."""
