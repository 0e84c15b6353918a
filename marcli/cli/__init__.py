"""The six commands: argv to recipe to one call. No torch at import."""
