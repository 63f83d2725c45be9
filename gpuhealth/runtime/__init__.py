"""Infrastructure of long-running processes: settings, clock, journal, task supervision, HTTP server, metrics text."""
