"""`pageturn dashboard`: a run on this machine, watched in a browser while it goes on.

`live.py` reads the run's files as they grow; `server.py` gives them out; page.html, page.css and page.js show them.
"""
