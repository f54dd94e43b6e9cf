"""Reports: tables and figures of many runs, and the pages that hold them."""
