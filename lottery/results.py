"""The door of scripts that were written for earlier versions: they call `lottery.results.tickets(filter)`."""

from lottery.report.results import search_tickets as tickets

__all__ = ["tickets"]
