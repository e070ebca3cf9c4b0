"""Client of coordinator."""
