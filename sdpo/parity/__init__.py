"""The parity harness: cases, truth, comparison, explanation, reports, audits."""
