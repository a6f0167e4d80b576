"""The operator's displays: a line in the terminal, and (``--console``) a page in a browser.

Both only observe. The page is served by a process of its own that follows the session's log: it can be started again at any time and
knows everything, and nothing it does can hold up the session. What the operator does on it is handed to the supervisor, and recorded.
"""

from rtevo.console.status import Status, closing_words

__all__ = ["Status", "closing_words"]
