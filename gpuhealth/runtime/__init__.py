"""What a long-running process needs: settings, clock, journal, task supervision, HTTP server, metrics text."""
