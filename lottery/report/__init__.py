"""From runs to answers, tables, figures, and one page."""
