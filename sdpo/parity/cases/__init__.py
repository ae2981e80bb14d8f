"""Stages, cases and checked calls: what everything else in the harness stands on."""
