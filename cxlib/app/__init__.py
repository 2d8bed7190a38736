"""Why this class and not that one, in a browser: `server` shows a page to this machine alone.

`shelf` finds networks, `layers` those of their layers that are worth a choice.

The page and its server are the standard library's, plain HTML and JavaScript: nothing is installed for them, nothing is
fetched from elsewhere, and no picture leaves the machine.
"""
