"""The nouns: commands, steps, records, definitions, settings.  Data only; imports nothing of the package but errors."""
