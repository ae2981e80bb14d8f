"""Loss cases between the recorded ones: every pair of what input, form or call may be."""
