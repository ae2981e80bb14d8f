"""Candidates: one small file per kind of implementation under test."""
