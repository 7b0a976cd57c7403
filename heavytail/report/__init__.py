"""Reports: reproduce figures, and write their files, tables and page."""
