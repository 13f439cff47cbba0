"""The admin API: HTTP in, commands to the fleet's manager out. No decisions here."""
