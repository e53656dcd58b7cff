"""What users connect, checked before any work is done, and errors that say what to do."""
