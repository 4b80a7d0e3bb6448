"""Ray actors, dispatch, retry and resume; the store of committed Arrow files."""
