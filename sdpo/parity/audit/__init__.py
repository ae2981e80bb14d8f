"""One audit: run it, isolate it, write it, give its exit code."""
