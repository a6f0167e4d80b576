"""Rules for refusing presenters."""

from __future__ import annotations

from rtevo.wire import SELF_TEST, Hello, Refused

__all__ = ["REPLACED", "TAKEN", "refusal"]

TAKEN = "another presenter is connected"
REPLACED = "another presenter has taken this one's place"


def refusal(hello: Hello, session: str, ended: bool, replaced: bool) -> Refused | None:
    """Return the refusal of a presenter; None if it is admitted.

    Parameters
    ----------
    hello : Hello
        The presenter's hello.
    session : str
        The bridge's name for the session.
    ended : bool
        The session is over.
    replaced : bool
        The session has another presenter than the one that says hello.
    """
    if (hello.display == SELF_TEST) != (session == SELF_TEST):
        return Refused(
            "a session is waiting here, not a test of the link (python -m rtevo.bridge test)"
            if hello.display == SELF_TEST
            else "only a test of the link runs here (python -m presenter --selftest): start the session"
        )
    if hello.session not in ("", session):
        return Refused("this presenter belongs to another session: restart it")
    if ended:
        return Refused("the session is over", final=hello.session == session)
    if replaced and hello.session == session:
        return Refused(REPLACED, replaced=True)
    return None
