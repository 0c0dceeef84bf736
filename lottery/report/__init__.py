"""Turns runs into answers, tables, figures and one page."""
