"""What runs say: tables, plots, sentences."""
