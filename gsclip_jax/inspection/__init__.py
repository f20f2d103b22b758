"""One's own parts: scans in; verdicts, places and a page out. The top floor: it may use both packages below."""
