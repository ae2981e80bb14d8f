"""The paper's loss in reading order: support, divergence, importance, aggregate; torch only."""
