"""One input changed alone, and pairs of scripts that must agree."""
