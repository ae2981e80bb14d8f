"""Renderings of the one report document: text, Markdown, HTML, JUnit, SARIF, plots."""
