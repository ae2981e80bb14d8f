"""What every part needs of its surroundings: files, JSON, tables, progress, memory, lazy names."""
