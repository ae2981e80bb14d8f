"""The defaults of layers and packages beside each other."""
